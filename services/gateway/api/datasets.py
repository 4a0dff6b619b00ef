"""/v1/datasets: submit, watch, download, cancel, delete."""

from __future__ import annotations

import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import PurePosixPath
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from redis.exceptions import RedisError

from services.gateway.api.access import Caller, Generator, Reader
from services.gateway.api.dataset_checks import check_crops, check_dataset
from services.gateway.api.dataset_estimate import estimate_dataset
from services.gateway.api.dataset_status import dataset_status, find_submission
from services.gateway.api.idempotency import IdempotencyKey, check_key, keep_key
from services.gateway.api.paging import Cursor, Limit, page
from services.gateway.api.problems import ProblemError, documented, returning
from services.gateway.api.streams import Wanted, send_object, sending, tar_stream
from services.gateway.api.watching import Watching
from shared.contracts.base import Name
from shared.contracts.gateway import (
    DatasetEstimate,
    DatasetPage,
    DatasetStatus,
    ShardLink,
    ShardPage,
    Submission,
    submission_key,
)
from shared.contracts.jobs import State
from shared.contracts.models import ModelRef
from shared.contracts.synthesize import DatasetRequest, dataset_key
from shared.datasets.preview import PREVIEW_SAMPLES, draw_preview
from shared.datasets.samples import Sample, read_members
from shared.imaging.codec import encode_png
from shared.models import read_model
from shared.queue.redis_state import RedisLeases
from shared.storage import ObjectStore, sha256

LINK_SECONDS = 3600
PRIVATE = ("submission.json", "choices.parquet")

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])


@dataclass(frozen=True)
class Found:
    """A dataset that a caller may see."""

    caller: Caller
    submission: Submission

    @property
    def name(self) -> str:
        """Its name."""
        return self.submission.request.dataset

    @property
    def store(self) -> ObjectStore:
        """The store that it lies in."""
        return self.caller.store

    def status(self) -> DatasetStatus:
        """Compute its status."""
        progress = self.caller.resources.progress(self.submission.job)
        return dataset_status(self.caller.ledger, self.submission, progress)


DatasetName = Annotated[Name, Path(description="name of the dataset")]


def _find(caller: Caller, dataset: str) -> Found:
    submission = find_submission(caller.ledger, dataset)
    if submission is None:
        raise ProblemError(
            404,
            "no-dataset",
            f"there is no dataset {dataset!r}",
            remedy="GET /v1/datasets lists those there are",
        )
    return Found(caller, submission)


def _found(caller: Reader, dataset: DatasetName) -> Found:
    return _find(caller, dataset)


def _found_to_change(caller: Generator, dataset: DatasetName) -> Found:
    return _find(caller, dataset)


Readable = Annotated[Found, Depends(_found)]
Changeable = Annotated[Found, Depends(_found_to_change)]


@router.post("", status_code=202, responses=documented(409))
def submit_dataset(
    request: DatasetRequest, caller: Generator, response: Response, key: IdempotencyKey = None
) -> DatasetStatus:
    """Ask for a dataset.

    It is checked against the model before anything is queued. The same request again is
    the same dataset; what failed or was cancelled is tried again.
    """
    with RedisLeases(caller.resources.redis, 30).hold(
        f"submit/{caller.token.tenant}/{request.dataset}"
    ) as mine:
        if not mine:
            raise ProblemError(
                409,
                "busy",
                f"dataset {request.dataset!r} is being submitted at this moment",
                remedy="send the request again",
                headers={"Retry-After": "1"},
            )
        answered = check_key(caller.store, key, request)
        if answered is None or find_submission(caller.ledger, request.dataset) is None:
            _submit(caller, request, key)
    found = _find(caller, request.dataset)
    response.headers["Location"] = f"/v1/datasets/{request.dataset}"
    return found.status()


def _submit(caller: Caller, request: DatasetRequest, key: str | None) -> None:
    check_dataset(caller.store, request)
    job = caller.ledger.identify(request)
    before = find_submission(caller.ledger, request.dataset)
    if before is not None and before.job != job:
        raise ProblemError(
            409,
            "dataset-exists",
            f"dataset {request.dataset!r} was asked for before, with another request",
            remedy="give this one another name, or delete that one first",
            pointer="#/dataset",
        )
    ended = caller.ledger.result(job)
    if before is None or (ended is not None and ended.state != "done"):
        check_crops(caller.store, request)
        caller.spend("images", request.images)
    caller.submit(request)
    if before is None:
        submission = Submission(
            job=job, token=caller.token.name, created=datetime.now(UTC), request=request
        )
        caller.store.put_json(submission_key(request.dataset), submission)
    keep_key(caller.store, key, request, job)


@router.post("/estimate")
def estimate(request: DatasetRequest, caller: Reader) -> DatasetEstimate:
    """Say what a dataset will cost, going by earlier ones of the same model; nothing is made."""
    check_dataset(caller.store, request)
    return estimate_dataset(caller.ledger, request)


@router.get("")
def list_datasets(
    caller: Reader,
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
        status = Found(caller, submission).status()
        fits = model in {None, status.model, ModelRef.parse(status.model).name}
        return status if fits and state in {None, status.state} else None

    items, following = page(caller.store.folders("datasets/"), cursor, limit, read)
    return DatasetPage(items=items, next=following)


@router.get("/{dataset}", responses=documented(404) | {304: {"description": "Not modified"}})
def show_dataset(
    found: Readable, response: Response, if_none_match: Annotated[str | None, Header()] = None
) -> DatasetStatus:
    """Say how a dataset is: state, counts, rate, time left, failed shards and why."""
    status = found.status()
    tag = f'"{sha256(status.model_dump_json().encode())[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if if_none_match is not None and tag in if_none_match:
        return Response(status_code=304, headers=headers)  # type: ignore[return-value]
    response.headers.update(headers)
    return status


@router.get("/{dataset}/events", response_class=EventSourceResponse, responses=documented(404))
async def watch_dataset(found: Readable, request: Request) -> AsyncIterator[ServerSentEvent]:
    """Follow a dataset's status live: an event `status` for every change, until the job ends."""
    watching: Watching = request.app.state.watching
    async for status in watching.follow(found.submission.job, found.status):
        yield ServerSentEvent(event="status", data=status)


@router.post("/{dataset}/cancel", responses=documented(404))
def cancel_dataset(found: Changeable) -> DatasetStatus:
    """Stop making a dataset; shards that are done stay. What has ended is left as it is."""
    found.caller.ledger.cancel(found.submission.job)
    found.caller.audit("cancel", job=found.submission.job, dataset=found.name)
    return found.status()


@router.delete("/{dataset}", status_code=204, responses=documented(404, 409))
def delete_dataset(found: Changeable) -> None:
    """Delete a dataset that is not in the making, with its job's records."""
    job, ledger = found.submission.job, found.caller.ledger
    if ledger.is_open(job) or _worked_on(found):
        raise ProblemError(
            409,
            "in-the-making",
            f"dataset {found.name!r} is in the making",
            remedy=f"POST /v1/datasets/{found.name}/cancel, and try again in a few seconds",
            headers={"Retry-After": "5"},
        )
    ledger.store.delete_prefix(ledger.key(job, ""))
    ledger.store.delete_prefix(dataset_key(found.name, ""))
    found.caller.audit("delete", job=job, dataset=found.name)


def _worked_on(found: Found) -> bool:
    """Whether a worker holds a lease on one of the job's units, as a cancelled job's may."""
    with suppress(RedisError):
        leases = found.caller.resources.redis.scan_iter(
            f"lease:{found.submission.job}/*", count=1000
        )
        return next(leases, None) is not None
    return False


@router.get(
    "/{dataset}/preview",
    response_class=Response,
    responses=documented(404, 409) | returning("image/png"),
)
def preview_dataset(found: Readable) -> Response:
    """Draw the first images below their label maps, as soon as a shard is done."""
    final = dataset_key(found.name, "preview.png")
    ended = found.caller.ledger.result(found.submission.job)
    if ended and ended.state in {"done", "partial"} and found.store.exists(final):
        return Response(found.store.get(final), media_type="image/png")
    key = next(iter(_shard_keys(found)), None)
    if key is None:
        raise _not_yet(found, "no shard is finished")
    request = found.submission.request
    model = read_model(found.store, request.model_ref)
    picture = encode_png(draw_preview(_first_samples(found.store, key), model.classes))
    return Response(picture, media_type="image/png", headers={"Cache-Control": "no-cache"})


def _not_yet(found: Found, what: str) -> ProblemError:
    return ProblemError(
        409,
        "not-yet",
        f"{what} of dataset {found.name!r}",
        remedy=f"watch /v1/datasets/{found.name}/events",
        headers={"Retry-After": "5"},
    )


def _first_samples(store: ObjectStore, key: str) -> list[Sample]:
    """Read a shard only as far as its first samples."""
    with store.open(key) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        members = (
            (member.name, file.read())
            for member in tar
            if (file := tar.extractfile(member)) is not None
        )
        return list(islice(read_members(members), PREVIEW_SAMPLES))


def _shard_keys(found: Found) -> dict[str, str]:
    """Keys of the finished shards that hold images, with the names of their markers."""
    done = found.caller.ledger.done(found.submission.job)
    return {
        dataset_key(found.name, f"shards/{name.removeprefix('shard-')}.tar"): name
        for name in sorted(done)
        if name.startswith("shard-")
    }


@router.get("/{dataset}/shards", responses=documented(404))
def list_shards(found: Readable, limit: Limit = 50, cursor: Cursor = None) -> ShardPage:
    """List finished shards with links to download them, also while others are being made."""
    markers = _shard_keys(found)

    def read(key: str) -> ShardLink | None:
        marker = found.caller.ledger.marker(found.submission.job, markers[key])
        if not marker.result["images"]:
            return None
        name = PurePosixPath(key).name
        return ShardLink(
            shard=name,
            url=found.store.presign(key, LINK_SECONDS)
            or f"/v1/datasets/{found.name}/files/shards/{name}",
            bytes=found.store.size(key),
            sha256=marker.outputs[key],
        )

    items, following = page(markers, cursor, limit, read)
    return ShardPage(items=items, next=following)


@router.get(
    "/{dataset}/files/{path:path}",
    response_class=StreamingResponse,
    responses=documented(404) | sending("application/octet-stream"),
)
def download_file(
    found: Readable,
    path: Annotated[str, Path(max_length=512, description="as in the archive")],
    wanted: Wanted,
) -> Response:
    """Download one file of a dataset, or a part of it."""
    if path.endswith(PRIVATE):
        raise ProblemError(404, "not-found", f"dataset {found.name!r} has no file {path!r}")
    key = dataset_key(found.name, path)
    name = PurePosixPath(path).name
    return send_object(found.store, key, wanted, "application/octet-stream", name)


@router.get(
    "/{dataset}/archive",
    response_class=StreamingResponse,
    responses=documented(404, 409) | returning("application/x-tar"),
)
def download_archive(found: Readable) -> StreamingResponse:
    """Download a dataset as one tar: shards, manifest, card, exports."""
    if found.status().state not in {"done", "partial"}:
        raise _not_yet(found, "there is no archive yet")
    members = list(_members(found))
    return StreamingResponse(
        tar_stream(found.store, members),
        media_type="application/x-tar",
        headers={"Content-Disposition": f'attachment; filename="{found.name}.tar"'},
    )


def _members(found: Found) -> Iterator[tuple[str, str]]:
    prefix = dataset_key(found.name, "")
    for key in found.store.list(prefix):
        name = key.removeprefix(prefix)
        rows = name.startswith("shards/") and name.endswith(".parquet")  # joined in the manifest
        if name not in PRIVATE and not rows:
            yield f"{found.name}/{name}", key


@router.get(
    "/{dataset}/card",
    response_class=Response,
    responses=documented(404) | returning("text/markdown"),
)
def show_card(found: Readable) -> Response:
    """Return the dataset card: Markdown with the front matter of the Hugging Face hub."""
    data = found.store.get(dataset_key(found.name, "README.md"))
    return Response(data, media_type="text/markdown")


@router.get(
    "/{dataset}/croissant",
    response_class=Response,
    responses=documented(404) | returning("application/ld+json"),
)
def show_croissant(found: Readable) -> Response:
    """Return the dataset's metadata as Croissant 1.0 JSON-LD."""
    data = found.store.get(dataset_key(found.name, "croissant.json"))
    return Response(data, media_type="application/ld+json")
