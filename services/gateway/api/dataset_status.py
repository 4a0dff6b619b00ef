"""The status of a dataset, computed from its job's objects and its workers' progress reports."""

from __future__ import annotations

import logging
from itertools import islice
from typing import Any

from pydantic import ValidationError

from services.gateway.api.problems import hide_paths, without_paths
from shared.contracts.gateway import DatasetStatus, Submission, submission_key
from shared.contracts.synthesize import DatasetRecord, DatasetRequest, dataset_key
from shared.errors import InputError
from shared.jobs import Ledger, UnreadableRecordError, names
from shared.storage import ObjectNotFoundError

log = logging.getLogger(__name__)

RATE_SHARDS = 8
"""Number of finished shards that the rate is estimated from."""

MAX_FAILURES_SHOWN = 100


def find_submission(ledger: Ledger, dataset: str) -> Submission | None:
    """Return the submission of a dataset, or None if there is no such dataset.

    A dataset that was made without the gateway has no submission in the store; the submission
    is then made from the record of the finished dataset.
    """
    store = ledger.store
    try:
        return store.get_model(submission_key(dataset), Submission)
    except ObjectNotFoundError:
        pass
    except ValidationError:
        log.exception("the submission of dataset %s cannot be read", dataset)
    try:
        request = store.get_model(dataset_key(dataset, "dataset.json"), DatasetRecord).request
        job = names.owner(store, f"datasets/{dataset}") or ledger.identify(request)
        return Submission(job=job, request=request)
    except InputError:
        return None
    except ValidationError:
        log.exception("the record of dataset %s cannot be read", dataset)
        return None


def dataset_status(
    ledger: Ledger, submission: Submission, progress: dict[str, dict[str, Any]]
) -> DatasetStatus:
    """Compute the status of a dataset; if a record of its job is unreadable, it has failed.

    Args:
        ledger: jobs of the store that holds the dataset.
        submission: submission of the dataset.
        progress: shard → progress report of a worker; see `shared.queue.redis_state`.
    """
    try:
        return _dataset_status(ledger, submission, progress)
    except UnreadableRecordError as error:
        request = submission.request
        return DatasetStatus(
            dataset=request.dataset, model=str(request.model_ref), job=submission.job,
            state="failed", images=request.images, made=0, shards=0, shards_done=0,
            failed={"record": hide_paths(str(error))}, images_per_second=None, seconds_left=None,
            created=submission.created, result=None,
        )  # fmt: skip


def _dataset_status(
    ledger: Ledger, submission: Submission, progress: dict[str, dict[str, Any]]
) -> DatasetStatus:
    request, job = submission.request, submission.job
    snapshot = ledger.snapshot(job)
    ended, failed = snapshot.result, snapshot.failed
    shards = snapshot.plan.shards if snapshot.plan else []
    done = snapshot.done
    finished = [shard.id for shard in shards if shard.id in done]
    result = ended.result if ended else None
    made = result["images"] if result else _planned_images(request, finished)
    busy = {
        unit: report
        for unit, report in progress.items()
        if unit not in done and unit not in failed and report["done"] < report["total"]
    }
    if not ended:
        made += sum(int(report["done"]) for report in busy.values())
    rate = None if ended else _rate(ledger, job, finished, len(busy))
    return DatasetStatus(
        dataset=request.dataset,
        model=str(request.model_ref),
        job=job,
        state=snapshot.state,
        images=request.images,
        made=made,
        shards=len(shards),
        shards_done=len(finished),
        failed={
            unit: hide_paths(error)
            for unit, error in islice(sorted(failed.items()), MAX_FAILURES_SHOWN)
        },
        images_per_second=rate,
        seconds_left=round((request.images - made) / rate, 1) if rate else None,
        created=submission.created,
        result=without_paths(result),
    )


def _planned_images(request: DatasetRequest, shards: list[str]) -> int:
    """Count the images of finished shards; only the last shard may be smaller than the others."""
    sizes = (
        min(request.shard_size, request.images - int(shard.rpartition("-")[2]) * request.shard_size)
        for shard in shards
    )
    return sum(sizes)


def _rate(ledger: Ledger, job: str, finished: list[str], workers: int) -> float | None:
    """Estimate images per second: the mean rate of a finished shard times the number of workers."""
    markers = [ledger.marker(job, shard) for shard in finished[-RATE_SHARDS:]]
    seconds = sum(marker.seconds for marker in markers)
    images = sum(int(marker.result["images"]) for marker in markers)
    if not workers or not images or not seconds:
        return None
    return round(workers * images / seconds, 3)
