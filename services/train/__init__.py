"""Train: regions → autoencoder and denoiser → published model version."""
