"""What a request takes from the store's records, and what its user should know before it runs."""

from __future__ import annotations

from shared.contracts.base import Request, Split
from shared.contracts.evaluate import EvaluateRequest
from shared.contracts.ingest import CohortRecord, cohort_key
from shared.contracts.models import ModelRef
from shared.contracts.train import TrainRequest
from shared.datasets.samples import load_dataset
from shared.errors import InputError
from shared.imaging.region_sets import classes_without_regions, load_region_set
from shared.models import read_model
from shared.storage import ObjectNotFoundError, Store


def cohort_scale(store: Store, cohort: str) -> tuple[int, float]:
    """Return side (pixels) and resolution (µm per pixel) of a cohort's regions.

    Raises:
        InputError: there is no such cohort.
    """
    try:
        return store.get_model(cohort_key(cohort), CohortRecord).scale
    except ObjectNotFoundError as error:
        raise InputError(
            f"{store.url} holds no cohort {cohort!r}: run htd ingest first, or check the name"
        ) from error


def notes(store: Store, request: Request) -> list[str]:
    """Return sentences about what a request cannot do well: classes without a region to use.

    A request whose inputs are missing gets none; it is refused when it is submitted.
    """
    try:
        if isinstance(request, TrainRequest):
            return _missing(store, request.regions, ("train",), "the model cannot learn them")
        if isinstance(request, EvaluateRequest):
            from services.evaluate.held_out import unlearnt

            name = request.regions or _own_regions(store, request.dataset)
            return [
                *_missing(store, name, request.real_train, "segmenters cannot learn them"),
                *_missing(store, name, request.real_test, "they are not scored"),
                *unlearnt(store, request),
            ]
    except ObjectNotFoundError:
        pass
    return []


def _missing(store: Store, regions: str, splits: tuple[Split, ...], effect: str) -> list[str]:
    record = load_region_set(store, regions)
    missing = classes_without_regions(store, record, *splits) if record.of_split(*splits) else []
    if not missing:
        return []
    where = " or ".join(splits)
    return [f"region set {regions!r} has no region with {', '.join(missing)} in {where}: {effect}"]


def _own_regions(store: Store, dataset: str) -> str:
    model = read_model(store, ModelRef.parse(load_dataset(store, dataset).model))
    return model.regions
