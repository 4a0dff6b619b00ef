"""The records of published models in the store."""

from __future__ import annotations

import re

from shared.contracts.models import ModelRecord, ModelRef
from shared.storage import Store


def read_model(store: Store, ref: ModelRef) -> ModelRecord:
    """Return the record of a model version. Raises `ObjectNotFoundError`."""
    return store.get_model(ref.key, ModelRecord)


def versions(store: Store, model: str) -> list[str]:
    """Return the published versions of a model, the newest last: 2 before 10."""
    names = (name for name in store.folders(f"models/{model}/"))
    found = (name for name in names if store.exists(ModelRef(model, name).key))
    return sorted(found, key=lambda name: [int(n) for n in re.findall(r"\d+", name)] or [0])


def find_version(store: Store, text: str) -> ModelRef:
    """Read `<name>`, which is its newest version, or `<name>/<version>`.

    A model without a version becomes version 1, so that reading it says that it is missing.
    """
    name = text.removeprefix("models/")
    if "/" in name:
        return ModelRef.parse(name)
    return ModelRef(name, next(reversed(versions(store, name)), "1"))
