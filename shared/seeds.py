"""Seeds of single images, that follow from the request alone."""

from __future__ import annotations

import hashlib


def image_seed(seed: int, index: int) -> int:
    """Seed of image `index` of a request or training, whatever batch, worker or try makes it."""
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
