"""The times of a sampler's steps: noise is at t = 1, the image at t = 0."""

from __future__ import annotations


def times(steps: int) -> list[float]:
    """Return the time t at which each of `steps` equal steps begins: 1, 1 - 1/steps, …, 1/steps."""
    return [1 - step / steps for step in range(steps)]
