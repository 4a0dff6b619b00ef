"""Field: a label map of any size and crops → one image as a slide, made in strips."""
