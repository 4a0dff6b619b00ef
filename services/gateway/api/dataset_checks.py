"""Checks of a dataset request, which run before its job is queued."""

from __future__ import annotations

from dataclasses import dataclass

from services.gateway.api.problems import ProblemError, blaming
from shared.contracts.models import ModelRecord
from shared.contracts.regions import RegionSet
from shared.contracts.synthesize import DatasetRequest, wanted_shares
from shared.datasets.map_choice import plan_maps
from shared.datasets.region_bank import open_banks
from shared.datasets.samples import check_region_set
from shared.imaging.region_sets import load_region_set
from shared.models import pinned, read_model
from shared.storage import Store

MAX_SHARDS = 100_000
"""Largest number of shards, because a job's status lists the markers of all its shards."""

MAX_PLANNED_IMAGES, MAX_PLANNED_SLIDES = 100_000, 100
"""Largest request whose crops are checked while a client waits; a larger one fails in its job."""


@dataclass(frozen=True)
class ResolvedRequest:
    """A checked dataset request, with the records that it names.

    Attributes:
        request: the request.
        model: the model version.
        map_set: the region set that maps are taken from.
        crop_set: the region set that crops are taken from.
    """

    request: DatasetRequest
    model: ModelRecord
    map_set: RegionSet
    crop_set: RegionSet


def resolve_request(store: Store, request: DatasetRequest) -> ResolvedRequest:
    """Read the records that a request names, and check the request against them.

    Raises:
        ProblemError: a field is wrong; the problem document names it (422).
    """
    with blaming("#/model"):
        request = pinned(store, request)
        model = read_model(store, request.model_ref)
    with blaming("#/proportions"):
        wanted_shares(request.proportions, model.classes)
    with blaming("#/steps"):
        request.sampling(model)
    with blaming("#/maps"):
        map_set = load_region_set(store, request.maps.regions or model.regions)
        check_region_set(map_set, request.maps.splits, model)
    with blaming("#/crops"):
        name = request.crops.regions or model.regions
        crop_set = map_set if name == map_set.name else load_region_set(store, name)
        check_region_set(crop_set, request.crops.splits, model)
    shards = -(-request.images // request.shard_size)
    if shards > MAX_SHARDS:
        raise ProblemError(
            422,
            "invalid",
            f"{request.images} images in shards of {request.shard_size} are {shards} shards; "
            f"at most {MAX_SHARDS} are allowed",
            remedy=f"set shard_size to {-(-request.images // MAX_SHARDS)} or more",
            pointer="#/shard_size",
        )
    return ResolvedRequest(request, model, map_set, crop_set)


def check_crops(store: Store, resolved: ResolvedRequest) -> None:
    """Check that every class in the dataset's maps has a crop; skip requests that are too large.

    Raises:
        ProblemError: a crop is missing; the message names the class and the slide (422).
    """
    request, model = resolved.request, resolved.model
    slides = len(resolved.map_set.of_split(*request.maps.splits)) + len(
        resolved.crop_set.of_split(*request.crops.splits)
    )
    if request.images <= MAX_PLANNED_IMAGES and slides <= MAX_PLANNED_SLIDES:
        with blaming("#/crops"):
            banks = open_banks(store, request, model, (resolved.map_set, resolved.crop_set))
            plan_maps(request, model, *banks)
