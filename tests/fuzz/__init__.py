"""Damaged and hostile inputs for every parser at the border."""
