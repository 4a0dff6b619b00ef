"""Programs of the models that a Triton server runs; `htd deploy` copies them there."""
