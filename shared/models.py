"""The records of published models in the store."""

from __future__ import annotations

import re
from typing import TypeVar

from shared.contracts.base import Contract
from shared.contracts.models import (
    EBHI_SEG,
    NEWEST,
    ModelChoice,
    ModelRecord,
    ModelRef,
    WeightsOrigin,
)
from shared.contracts.recipe import EMBEDDED_VAE
from shared.contracts.train import PACKAGED
from shared.errors import InputError, quoted
from shared.storage import ObjectNotFoundError, Store

T = TypeVar("T", bound=Contract)


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

    Raises:
        InputError: the store has no such model.
    """
    name = text.removeprefix("models/")
    if "/" in name and store.exists((ref := ModelRef.parse(name)).key):
        return ref
    if "/" not in name and (found := versions(store, name)):
        return ModelRef(name, found[-1])
    models = [f"{model}/{v}" for model in store.folders("models/") for v in versions(store, model)]
    raise InputError(
        f"{store.url} holds no model {quoted(name)}: "
        + (f"it holds {', '.join(models)}" if models else "it has no models yet (htd train)")
    )


def pinned(store: Store, request: T) -> T:
    """Return a request for the newest version of a model with the number of that version.

    Raises:
        InputError: the store has no such model.
    """
    if not isinstance(request, ModelChoice) or request.version != NEWEST:
        return request
    return request.model_copy(update={"version": find_version(store, request.model).version})


def check_layouts(model: ModelRecord) -> None:
    """Raise `InputError` if a model version has no layout model."""
    if not model.recipe.layouts.steps:
        raise InputError(
            f"{model.ref} has no layout model, so it cannot sample label maps: train it with "
            "--set recipe.layouts.steps=2000, or take label maps that there are"
        )


def weights_origin(store: Store, model: ModelRecord) -> WeightsOrigin | None:
    """Return the origin of a model's weights, through the models that it started from.

    None means that no weights of the package are behind it, as far as the store knows.
    """
    seen: set[str] = set()
    while True:
        start = model.warm_start
        if model.recipe.vae.pretrained == EMBEDDED_VAE or start in PACKAGED:
            return EBHI_SEG
        if start is None or start in seen:
            return None
        seen.add(start)
        try:
            model = read_model(store, ModelRef.parse(start))
        except ObjectNotFoundError:
            return None
