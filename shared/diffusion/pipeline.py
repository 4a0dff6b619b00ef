"""Stub until the denoiser is in."""
