"""The priority of a request."""

from __future__ import annotations

from enum import IntEnum


class Priority(IntEnum):
    """Requests of a higher priority go first; see `shared.serving.batcher`."""

    BULK = 0
    """Batches of a dataset."""
    INTERACTIVE = 1
    """Single images that a person waits for."""
