"""The model: autoencoder, denoiser conditioned on map and crops, flow-matching sampler."""
