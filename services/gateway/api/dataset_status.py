"""The status of a dataset, computed from its job's objects and its workers' progress reports."""

from __future__ import annotations

import logging
from itertools import islice

from pydantic import ValidationError

from services.gateway.api.problems import hide_paths, without_paths
from shared.contracts.gateway import DatasetStatus, Submission, submission_key
from shared.contracts.synthesize import DatasetRecord, DatasetRequest, dataset_key
from shared.errors import InputError
from shared.jobs import Ledger, Snapshot, UnreadableRecordError, names
from shared.jobs.records import JobNotFoundError
from shared.queue.redis_state import Progress
from shared.storage import DamagedObjectError, ObjectNotFoundError

log = logging.getLogger(__name__)

RATE_SHARDS = 8
"""Number of finished shards that the rate is estimated from."""

MAX_FAILURES_SHOWN = 100


def find_submission(ledger: Ledger, dataset: str) -> Submission | None:
    """Return the submission of a dataset, or None if there is no such dataset.

    A dataset that was made or replaced without the gateway has no submission of its own in the
    store: it is then made from the request of the job that the name belongs to, or from the
    record of the finished dataset.
    """
    store, owner = ledger.store, names.owner(ledger.store, f"datasets/{dataset}")
    submission = None
    try:
        submission = store.get_model(submission_key(dataset), Submission)
    except ObjectNotFoundError:
        pass
    except DamagedObjectError:
        log.exception("the submission of dataset %s cannot be read", dataset)
    if submission is not None and (not owner or submission.job == owner):
        return submission
    request = _request_of(ledger, owner, dataset)
    if request is None and submission is not None:
        request = submission.request
    if request is None:
        return None
    try:
        return Submission(job=owner or ledger.identify(request), request=request)
    except InputError:  # what it was made of is gone, and with it the id of the job
        return None


def _request_of(ledger: Ledger, job: str | None, dataset: str) -> DatasetRequest | None:
    """Return the request of a dataset's job, or that in the dataset's record; None: of neither."""
    try:
        if job:
            return DatasetRequest.model_validate(ledger.request(job))
    except JobNotFoundError:  # it was deleted meanwhile
        pass
    except (ValidationError, InputError):
        log.exception("the request of job %s cannot be read", job)
    try:
        return ledger.store.get_model(dataset_key(dataset, "dataset.json"), DatasetRecord).request
    except ObjectNotFoundError:
        return None
    except DamagedObjectError:
        log.exception("the record of dataset %s cannot be read", dataset)
        return None


def dataset_status(
    ledger: Ledger, submission: Submission, progress: dict[str, Progress]
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
    ledger: Ledger, submission: Submission, progress: dict[str, Progress]
) -> DatasetStatus:
    request, job = submission.request, submission.job
    snapshot = ledger.snapshot(job)
    ended, failed = snapshot.result, snapshot.failed
    result = ended.result if ended else None
    made = result["images"] if result else _planned_images(request, snapshot)
    busy = {
        unit: report
        for unit, report in progress.items()
        if report.done < report.total and unit not in failed and not snapshot.is_done(unit)
    }
    if not ended:
        made += sum(report.done for report in busy.values())
    rate = None if ended else _rate(ledger, snapshot, len(busy))
    return DatasetStatus(
        dataset=request.dataset,
        model=str(request.model_ref),
        job=job,
        state=snapshot.state,
        images=request.images,
        made=made,
        shards=snapshot.plan.total if snapshot.plan else 0,
        shards_done=snapshot.shards_done,
        failed={
            unit: hide_paths(error)
            for unit, error in islice(sorted(failed.items()), MAX_FAILURES_SHOWN)
        },
        images_per_second=rate,
        seconds_left=round((request.images - made) / rate, 1) if rate else None,
        created=submission.created,
        result=without_paths(result),
    )


def _planned_images(request: DatasetRequest, snapshot: Snapshot) -> int:
    """Count the images of finished shards; only the last shard may be smaller than the others."""
    made = snapshot.shards_done * request.shard_size
    rest = request.images % request.shard_size
    if rest and made and snapshot.is_done(f"shard-{request.images // request.shard_size:06d}"):
        made -= request.shard_size - rest
    return made


def _rate(ledger: Ledger, snapshot: Snapshot, workers: int) -> float | None:
    """Estimate images per second: the mean rate of a finished shard times the number of workers."""
    finished = snapshot.last_done(RATE_SHARDS) if workers else []
    markers = [ledger.marker_at(snapshot.job, segment, shard) for segment, shard in finished]
    seconds = sum(marker.seconds for marker in markers)
    images = sum(int(marker.result["images"]) for marker in markers)
    if not workers or not images or not seconds:
        return None
    return round(workers * images / seconds, 3)
