"""Serving a published model: many requests in flight on one denoiser."""
