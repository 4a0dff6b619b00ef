"""Train: regions → VAE + dual-conditioned denoiser → published model version."""
