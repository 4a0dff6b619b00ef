"""What a dataset will cost, going by what earlier ones of the same model took."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from services.gateway.api.dataset_status import find_submission
from shared.contracts.gateway import DatasetEstimate
from shared.contracts.models import ModelRecord
from shared.contracts.synthesize import DatasetRequest
from shared.diffusion.guidance import Guidance
from shared.jobs import Ledger
from shared.models import read_model

DATASETS, SHARDS = 8, 8
"""Earlier datasets, and shards of each, that are looked at."""


def estimate_dataset(ledger: Ledger, request: DatasetRequest) -> DatasetEstimate:
    """Multiply what an image took before.

    Seconds grow with the denoiser's evaluations, which are most of the work.

    Raises:
        InputError: there is no such model, or it cannot sample as is asked.
    """
    model = read_model(ledger.store, request.model_ref)
    evaluations = _evaluations(request, model)
    datasets = made = stored = 0
    per_evaluation = 0.0
    for before, markers in islice(_earlier(ledger, request), DATASETS):
        datasets += 1
        for marker in markers:
            images = int(marker["result"]["images"])
            made += images
            per_evaluation += float(marker["seconds"]) / _evaluations(before, model)
            stored += sum(
                ledger.store.size(key) for key in marker["outputs"] if key.endswith(".tar")
            )
    return DatasetEstimate(
        images=request.images,
        seconds=round(request.images * evaluations * per_evaluation / made, 1) if made else None,
        bytes=request.images * stored // made if made else None,
        measured_datasets=datasets,
        measured_images=made,
        evaluations=evaluations,
    )


def _evaluations(request: DatasetRequest, model: ModelRecord) -> int:
    sampling = request.sampling(model)
    guidance = Guidance.from_scale(sampling, request.use_map, request.use_crops)
    return guidance.evaluations(sampling.steps)


def _earlier(
    ledger: Ledger, request: DatasetRequest
) -> Iterator[tuple[DatasetRequest, list[dict[str, Any]]]]:
    """Yield datasets of the same model version, each with markers of its finished shards."""
    for name in ledger.store.folders("datasets/"):
        found = find_submission(ledger, name)
        if found is None:
            continue
        before = found.request
        if (before.model, before.version) != (request.model, request.version):
            continue
        done = sorted(ledger.done(found.job))
        shards = [unit for unit in done if unit.startswith("shard-")][:SHARDS]
        if shards:
            yield before, [ledger.marker(found.job, shard) for shard in shards]
