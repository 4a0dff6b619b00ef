"""The records of published models in the store."""

from __future__ import annotations

from shared.contracts.models import EBHI_SEG, ORIGINS, ModelRecord, ModelRef, WeightsOrigin
from shared.storage import ObjectNotFoundError, Store


def read_model(store: Store, ref: ModelRef) -> ModelRecord:
    """Return the record of a model version. Raises `ObjectNotFoundError`."""
    return store.get_model(ref.key, ModelRecord)


def weights_origin(store: Store, model: ModelRecord) -> WeightsOrigin | None:
    """Return the origin of a model's weights, through the models that it started from.

    None means that no weights of the package are behind it, as far as the store knows.
    """
    seen: set[str] = set()
    while True:
        if model.recipe.vae.pretrained == "embedded":
            return EBHI_SEG
        start = model.warm_start
        if start is None or start in ORIGINS or start in seen:
            return ORIGINS.get(start or "")
        seen.add(start)
        try:
            model = read_model(store, ModelRef.parse(start))
        except ObjectNotFoundError:
            return None
