"""Image: one label map and crops → one image, at once."""
