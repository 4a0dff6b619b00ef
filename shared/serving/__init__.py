"""Serving deployed models on Triton; many requests share the steps of one denoiser."""
