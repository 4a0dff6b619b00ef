"""What a recipe's model does on a GPU, within minutes; see `__main__`."""
