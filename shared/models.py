"""The records of published models in the store."""

from __future__ import annotations

from shared.contracts.models import ModelRecord, ModelRef
from shared.storage import Store


def read_model(store: Store, ref: ModelRef) -> ModelRecord:
    """Return the record of a model version. Raises `ObjectNotFoundError`."""
    return store.get_model(ref.key, ModelRecord)
