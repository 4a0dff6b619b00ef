"""Seeds of single images."""

from __future__ import annotations

import hashlib


def image_seed(seed: int, index: int) -> int:
    """Return the seed (63 bits) of image `index`; batch, worker and attempt do not change it."""
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
