"""Programs of the models that a Triton server runs; `htd publish` copies them."""
