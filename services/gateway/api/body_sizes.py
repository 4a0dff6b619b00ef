"""The largest bodies, in bytes, that operations take. Larger ones are refused with 413."""

from __future__ import annotations

from shared.contracts.gateway import MAX_SLIDE_BYTES

MAX_JSON_BYTES = 2 << 20
"""Every operation that is not named below."""

MAX_IMAGE_BYTES = 32 << 20
"""A label map with its crops (`/v1/images`)."""

MAX_ANNOTATION_BYTES = 2 << 30
MAX_FEATURE_BYTES = 16 << 30

__all__ = [
    "MAX_ANNOTATION_BYTES",
    "MAX_FEATURE_BYTES",
    "MAX_IMAGE_BYTES",
    "MAX_JSON_BYTES",
    "MAX_SLIDE_BYTES",
]
