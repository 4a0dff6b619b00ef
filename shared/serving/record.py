"""The record of what is published of a model."""

from __future__ import annotations

from shared.contracts.serving import ServedModel, served_key
from shared.storage import ObjectStore


def served(store: ObjectStore, model: str) -> ServedModel:
    """What is published of a model; nothing, if it never was."""
    key = served_key(model)
    if not store.exists(key):
        return ServedModel(model=model, versions=())
    return store.get_model(key, ServedModel)
