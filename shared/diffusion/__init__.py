"""The model: autoencoder, dual-conditioned denoiser, flow-matching sampler."""
