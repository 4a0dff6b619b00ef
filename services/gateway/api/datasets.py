"""/v1/datasets: submit, watch, download, cancel and delete datasets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from services.gateway.api.access import Caller, Listening, MayGenerate, MayRead
from services.gateway.api.dataset_checks import check_crops, resolve_request
from services.gateway.api.dataset_estimate import estimate_dataset
from services.gateway.api.dataset_files import DatasetFiles
from services.gateway.api.dataset_status import dataset_status, find_submission
from services.gateway.api.etags import NOT_MODIFIED, IfNoneMatch, etag_headers, not_modified
from services.gateway.api.idempotency import IdempotencyKey, claimed
from services.gateway.api.json_bodies import JsonRoute
from services.gateway.api.paging import Cursor, Limit, page
from services.gateway.api.problems import ProblemError, absent, documented, returning
from services.gateway.api.streams import Wanted, read_made, send_object, sending, tar_stream
from services.gateway.api.watching import Watching
from shared.contracts.base import Name
from shared.contracts.gateway import (
    DatasetEstimate,
    DatasetPage,
    DatasetStatus,
    ShardPage,
    Submission,
    submission_key,
)
from shared.contracts.jobs import State
from shared.contracts.models import ModelRef
from shared.contracts.synthesize import PRIVATE, DatasetRequest, dataset_key
from shared.datasets.preview import preview_png
from shared.jobs import Ledger
from shared.models import read_model
from shared.queue.redis_state import RedisLeases
from shared.storage import ReadOnceStore, Store, sha256

router = APIRouter(prefix="/v1/datasets", tags=["datasets"], route_class=JsonRoute)


@dataclass(frozen=True)
class OwnDataset:
    """A dataset of the caller's tenant."""

    caller: Caller
    submission: Submission

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return self.submission.request.dataset

    @property
    def job(self) -> str:
        """Id of the job that makes the dataset."""
        return self.submission.job

    @property
    def store(self) -> Store:
        """The store that holds the dataset."""
        return self.caller.store

    @property
    def files(self) -> DatasetFiles:
        """The files of the dataset."""
        return DatasetFiles(self.caller.ledger, self.submission)

    def read(self, name: str) -> bytes:
        """Read a small file of the dataset. Raises as `read_made` does."""
        key = dataset_key(self.name, name)
        return read_made(self.store, key, self.files.digest(key))

    def status(self) -> DatasetStatus:
        """Compute the status of the dataset."""
        progress = self.caller.resources.progress(self.job)
        return dataset_status(self.caller.ledger, self.submission, progress)


DatasetName = Annotated[Name, Path(description="name of the dataset")]


def _find(caller: Caller, dataset: str) -> OwnDataset:
    submission = find_submission(caller.ledger, dataset)
    if submission is None:
        raise _no_dataset(dataset)
    return OwnDataset(caller, submission)


def _no_dataset(dataset: str) -> ProblemError:
    return absent("dataset", dataset, "GET /v1/datasets lists those there are")


def _find_to_read(caller: MayRead, dataset: DatasetName) -> OwnDataset:
    return _find(caller, dataset)


def _find_to_change(caller: MayGenerate, dataset: DatasetName) -> OwnDataset:
    return _find(caller, dataset)


Readable = Annotated[OwnDataset, Depends(_find_to_read)]
Changeable = Annotated[OwnDataset, Depends(_find_to_change)]


@router.post("", status_code=202, responses=documented(409))
def submit_dataset(
    request: DatasetRequest, caller: MayGenerate, response: Response, key: IdempotencyKey = None
) -> DatasetStatus:
    """Submit a request for a dataset.

    The request is checked against the model before its job is queued. A request that is sent
    again names the same dataset; its failed and cancelled shards then run again.
    """
    with RedisLeases(caller.resources.redis, 30).hold(
        f"submit/{caller.token.tenant}/{request.dataset}"
    ) as held:
        if not held:
            raise ProblemError(
                409,
                "busy",
                f"dataset {request.dataset!r} is being submitted at this moment",
                remedy="send the request again",
                headers={"Retry-After": "1"},
            )
        with claimed(caller.store, key, request) as claim:
            submission = find_submission(caller.ledger, request.dataset)
            if claim.job is None or submission is None:
                submission = _submit(caller, request, submission)
                claim.job = submission.job
    response.headers["Location"] = f"/v1/datasets/{request.dataset}"
    return OwnDataset(caller, submission).status()


def _submit(caller: Caller, request: DatasetRequest, before: Submission | None) -> Submission:
    """Check and queue a request for a dataset.

    Args:
        caller: sender of the request.
        request: the request.
        before: earlier submission of a dataset of this name, if there is one.
    """
    store = ReadOnceStore(caller.store)
    resolved = resolve_request(store, request)
    request = resolved.request
    identity = Ledger(store, caller.ledger.owner).identity(request)
    job = identity.job
    if before is not None and before.job != job:
        raise ProblemError(
            409,
            "dataset-exists",
            f"dataset {request.dataset!r} was asked for before, with another request",
            remedy="choose another name, or delete the existing dataset first",
            pointer="#/dataset",
        )
    ended = caller.ledger.result(job)
    if before is None or (ended is not None and ended.state != "done"):
        check_crops(caller.store, resolved)
        with caller.spending("images", request.images):
            caller.submit(request, identity)
    else:
        caller.submit(request, identity)
    submission = before
    if submission is None:
        submission = Submission(
            job=job, token=caller.token.name, created=datetime.now(UTC), request=request
        )
        caller.store.put_json(submission_key(request.dataset), submission)
    return submission


@router.post("/estimate")
def estimate(request: DatasetRequest, caller: MayRead) -> DatasetEstimate:
    """Estimate the cost of a dataset from earlier datasets of the same model; nothing is made."""
    resolved = resolve_request(caller.store, request)
    return estimate_dataset(caller.ledger, resolved.request, resolved.model)


@router.get("")
def list_datasets(
    caller: MayRead,
    limit: Limit = 50,
    cursor: Cursor = None,
    model: Annotated[str | None, Query(description="<name>, or <name>/<version>")] = None,
    state: State | None = None,
) -> DatasetPage:
    """List datasets by name."""

    def read(name: str) -> DatasetStatus | None:
        submission = find_submission(caller.ledger, name)
        if submission is None:
            return None
        status = OwnDataset(caller, submission).status()
        fits = model in {None, status.model, ModelRef.parse(status.model).name}
        return status if fits and state in {None, status.state} else None

    items, following = page(caller.store.folders("datasets/"), cursor, limit, read)
    return DatasetPage(items=items, next=following)


@router.get("/{dataset}", responses=documented(404) | NOT_MODIFIED)
def show_dataset(
    own: Readable, response: Response, if_none_match: IfNoneMatch = None
) -> DatasetStatus:
    """Return a dataset's status: state, counts, rate, time left, failed shards and their errors."""
    status = own.status()
    headers = etag_headers(sha256(status.model_dump_json().encode())[:32], "no-cache")
    if (unchanged := not_modified(headers, if_none_match)) is not None:
        return unchanged  # type: ignore[return-value]
    response.headers.update(headers)
    return status


@router.get("/{dataset}/events", response_class=EventSourceResponse, responses=documented(404))
async def watch_dataset(
    own: Readable, _: Listening, request: Request
) -> AsyncIterator[ServerSentEvent]:
    """Stream a dataset's status: an event `status` for every change, until the job ends."""
    watching: Watching = request.app.state.watching
    async for status in watching.follow(own.job, own.status, own.caller.valid):
        yield ServerSentEvent(event="status", data=status)


@router.post("/{dataset}/cancel", responses=documented(404))
def cancel_dataset(own: Changeable) -> DatasetStatus:
    """Cancel the job of a dataset; finished shards stay. An ended job does not change."""
    own.caller.ledger.cancel(own.job)
    own.caller.audit("cancel", job=own.job, dataset=own.name)
    return own.status()


@router.delete("/{dataset}", status_code=204, responses=documented(404, 409))
def delete_dataset(dataset: DatasetName, caller: MayGenerate) -> None:
    """Delete a dataset and the records of its job; refused while the dataset is being made.

    Files that no job has a record of any more are deleted too: they keep the name taken.
    """
    submission = find_submission(caller.ledger, dataset)
    if submission is None and next(caller.store.list(f"datasets/{dataset}/"), None) is None:
        raise _no_dataset(dataset)
    caller.delete(f"datasets/{dataset}", submission.job if submission else None)


@router.get(
    "/{dataset}/preview",
    response_class=Response,
    responses=documented(404, 409) | returning("image/png"),
)
def preview_dataset(own: Readable) -> Response:
    """Return a picture of the first images below their label maps, once a shard is finished."""
    ended = own.caller.ledger.result(own.job)
    if ended and ended.state in {"done", "partial"}:
        return Response(own.read("preview.png"), media_type="image/png")
    files = own.files
    key = next(files.shards(), None)
    if key is None:
        raise _not_yet(own, "no shard is finished")
    request = own.submission.request
    model = read_model(own.store, request.model_ref)
    picture = preview_png(files.first_samples(key), model.classes)
    return Response(picture, media_type="image/png", headers={"Cache-Control": "no-cache"})


def _not_yet(own: OwnDataset, missing: str) -> ProblemError:
    return ProblemError(
        409,
        "not-yet",
        f"{missing} of dataset {own.name!r}",
        remedy=f"watch /v1/datasets/{own.name}/events",
        headers={"Retry-After": "5"},
    )


@router.get("/{dataset}/shards", responses=documented(404))
def list_shards(own: Readable, limit: Limit = 50, cursor: Cursor = None) -> ShardPage:
    """List finished shards with download links, even while other shards are being made."""
    files = own.files
    keys, following = page(files.shards(cursor), cursor, limit, str)
    # Links are made outside of `page`, which leaves out what cannot be read.
    items = tuple(link for key in keys if (link := files.link(key)) is not None)
    return ShardPage(items=items, next=following)


@router.get(
    "/{dataset}/files/{path:path}",
    response_class=StreamingResponse,
    responses=documented(404) | sending("application/octet-stream"),
)
def download_file(
    own: Readable,
    path: Annotated[str, Path(max_length=512, description="path of the file in the archive")],
    wanted: Wanted,
) -> Response:
    """Download a file of a dataset, or a range of its bytes."""
    if path.endswith(PRIVATE):
        raise ProblemError(404, "not-found", f"dataset {own.name!r} has no file {path!r}")
    key = dataset_key(own.name, path)
    name, digest = PurePosixPath(path).name, own.files.digest(key)
    return send_object(own.store, key, wanted, "application/octet-stream", name, digest)


@router.get(
    "/{dataset}/archive",
    response_class=StreamingResponse,
    responses=documented(404, 409) | returning("application/x-tar"),
)
def download_archive(own: Readable) -> StreamingResponse:
    """Download a dataset as one tar with its shards, manifest, card and exports."""
    if own.status().state not in {"done", "partial"}:
        raise _not_yet(own, "there is no archive yet")
    return StreamingResponse(
        tar_stream(own.store, own.files.archive()),
        media_type="application/x-tar",
        headers={"Content-Disposition": f'attachment; filename="{own.name}.tar"'},
    )


@router.get(
    "/{dataset}/card",
    response_class=Response,
    responses=documented(404) | returning("text/markdown"),
)
def show_card(own: Readable) -> Response:
    """Return the dataset card: Markdown with the front matter of the Hugging Face hub."""
    return Response(own.read("README.md"), media_type="text/markdown")


@router.get(
    "/{dataset}/croissant",
    response_class=Response,
    responses=documented(404) | returning("application/ld+json"),
)
def show_croissant(own: Readable) -> Response:
    """Return the dataset's metadata as Croissant 1.0 JSON-LD."""
    return Response(own.read("croissant.json"), media_type="application/ld+json")
