"""Estimate the cost of a dataset from earlier datasets of the same model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from services.gateway.api.dataset_status import find_submission
from shared.contracts.gateway import DatasetEstimate
from shared.contracts.jobs import Marker
from shared.contracts.models import ModelRecord
from shared.contracts.synthesize import DatasetRequest
from shared.diffusion.guidance import Guidance
from shared.jobs import Ledger, UnreadableRecordError

MAX_DATASETS, MAX_SHARDS = 8, 8
"""Largest number of earlier datasets, and of shards of each, that an estimate reads."""


def estimate_dataset(
    ledger: Ledger, request: DatasetRequest, model: ModelRecord
) -> DatasetEstimate:
    """Estimate the seconds and bytes of a dataset from the averages of earlier datasets.

    Time is averaged per denoiser evaluation, because the denoiser takes most of it.

    Args:
        ledger: jobs of the store that holds the datasets.
        request: the request for the dataset.
        model: record of the model that the request names.

    Raises:
        InputError: the model does not support the request's sampling settings.
    """
    evaluations = _evaluations(request, model)
    datasets = made = stored = 0
    per_evaluation = 0.0
    for before, markers in islice(_earlier(ledger, request), MAX_DATASETS):
        datasets += 1
        for marker in markers:
            images = int(marker.result["images"])
            made += images
            per_evaluation += marker.seconds / _evaluations(before, model)
            stored += sum(ledger.store.size(key) for key in marker.outputs if key.endswith(".tar"))
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
) -> Iterator[tuple[DatasetRequest, list[Marker]]]:
    """Yield requests of earlier datasets of the same model version, with markers of shards."""
    for name in ledger.store.folders("datasets/"):
        submission = find_submission(ledger, name)
        if submission is None:
            continue
        before = submission.request
        if (before.model, before.version) != (request.model, request.version):
            continue
        job = submission.job
        with suppress(UnreadableRecordError):  # another dataset's damage is not this one's
            if shards := ledger.snapshot(job).last_done(MAX_SHARDS):
                yield before, [ledger.marker_at(job, *shard) for shard in shards]
