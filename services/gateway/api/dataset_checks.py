"""What can be said of a dataset request before anything is queued."""

from __future__ import annotations

from services.gateway.api.problems import ProblemError, blaming
from shared.contracts.regions import RegionSet, region_set_key
from shared.contracts.synthesize import DatasetRequest, wanted_shares
from shared.datasets.map_choice import plan_maps
from shared.datasets.region_bank import open_banks
from shared.datasets.samples import check_region_set
from shared.models import read_model
from shared.storage import ObjectStore

MOST_SHARDS = 100_000
"""A job's status lists its shards' markers; beyond this many that takes too long."""

PLANNED_IMAGES, PLANNED_SLIDES = 100_000, 100
"""What is planned while a client waits; of a larger request, the job's own plan says the same."""


def check_dataset(store: ObjectStore, request: DatasetRequest) -> None:
    """Check a request against the model and the records of the region sets that it names.

    Raises:
        ProblemError: 422, naming the field that is wrong.
    """
    with blaming("#/model"):
        model = read_model(store, request.model_ref)
    with blaming("#/proportions"):
        wanted_shares(request.proportions, model.classes)
    with blaming("#/steps"):
        request.sampling(model)
    for field, source in (("maps", request.maps), ("crops", request.crops)):
        with blaming(f"#/{field}"):
            name = source.regions or model.regions
            check_region_set(store.get_model(region_set_key(name), RegionSet), source.splits, model)
    shards = -(-request.images // request.shard_size)
    if shards > MOST_SHARDS:
        raise ProblemError(
            422,
            "invalid",
            f"{request.images} images in shards of {request.shard_size} are {shards} shards; "
            f"at most {MOST_SHARDS} are taken",
            remedy=f"set shard_size to {-(-request.images // MOST_SHARDS)} or more",
            pointer="#/shard_size",
        )


def check_crops(store: ObjectStore, request: DatasetRequest) -> None:
    """Check that the maps which a checked request would take find a crop of each of their classes.

    Raises:
        ProblemError: 422, naming the class and the slide.
    """
    model = read_model(store, request.model_ref)
    sets = [
        store.get_model(region_set_key(source.regions or model.regions), RegionSet).of_split(
            *source.splits
        )
        for source in (request.maps, request.crops)
    ]
    if request.images <= PLANNED_IMAGES and sum(map(len, sets)) <= PLANNED_SLIDES:
        with blaming("#/crops"):
            plan_maps(request, model, *open_banks(store, request, model))
