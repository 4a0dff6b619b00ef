"""Serving a deployed model: many requests in flight on one denoiser."""
