"""Patch encoders: images → feature vectors.

`registry` is the table of published encoders, `embedded` the network that is trained on each
cohort, and `loading` turns a name into an `Encoder`.
"""

from shared.encoders.embedded import PatchNet, random_net
from shared.encoders.loading import (
    CPU_BATCH,
    Encoder,
    load_encoder,
    load_maps,
    normalized,
    packaged_state,
    packaged_weights,
)
from shared.encoders.registry import IMAGENET, REGISTRY, Foundation

__all__ = [
    "CPU_BATCH",
    "IMAGENET",
    "REGISTRY",
    "Encoder",
    "Foundation",
    "PatchNet",
    "load_encoder",
    "load_maps",
    "normalized",
    "packaged_state",
    "packaged_weights",
    "random_net",
]
