"""The client: one method for what one wants, typed by the contracts."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, RootModel

from shared.contracts.base import Request
from shared.contracts.cluster import TissueType
from shared.contracts.gateway import (
    Atlas,
    DatasetEstimate,
    DatasetPage,
    DatasetStatus,
    DeployBody,
    ImageBody,
    JobPage,
    ModelInfo,
    ModelPage,
    Names,
    ReportInfo,
    ReportPage,
    ShardLink,
    ShardPage,
    SlideInfo,
    SlidePage,
    SlideReference,
    TrainingRun,
    Upload,
    UploadBody,
    UploadStatus,
)
from shared.contracts.jobs import JobStatus
from shared.contracts.reader_study import (
    NewStudy,
    ReaderLink,
    StudyBody,
    StudyPage,
    StudyResults,
    StudyStatus,
)
from shared.contracts.synthesize import DatasetRequest
from shared.errors import HeteroTissueError, InputError

M = TypeVar("M", bound=BaseModel)

MOST_WAIT = 60
CHUNK = 1 << 20
WHOLE = ("README.md", "croissant.json", "dataset.json", "manifest.parquet", "preview.png")
"""A dataset's files besides its shards."""


class ServerError(HeteroTissueError):
    """The gateway cannot be reached, or failed; another try may help."""


class RefusedError(InputError):
    """The gateway refused a request.

    Attributes:
        problem: its problem document.
    """

    def __init__(self, problem: dict[str, Any]) -> None:
        remedy = problem.get("remedy")
        super().__init__(problem["detail"] + (f" ({remedy})" if remedy else ""))
        self.problem = problem


class Client:
    """A connection to a gateway.

    Args:
        server: its address, without /v1.
        token: a token of it.

    Every method raises `RefusedError` for what the gateway refuses, and `ServerError`.
    """

    def __init__(self, server: str, token: str) -> None:
        timeout = httpx2.Timeout(30.0, read=MOST_WAIT + 30.0)
        self._http = httpx2.Client(
            base_url=server, headers={"Authorization": f"Bearer {token}"}, timeout=timeout
        )
        self._others = httpx2.Client(timeout=timeout)  # other servers are not sent our token

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()
        self._others.close()

    def submit(self, request: Request) -> JobStatus:
        """Submit a request of any stage but synthesize and image."""
        answer = self._send("POST", f"/v1/{request.stage}", request, headers=_key())
        return JobStatus.model_validate_json(answer.content)

    def submit_dataset(self, request: DatasetRequest) -> DatasetStatus:
        """Ask for a dataset."""
        answer = self._send("POST", "/v1/datasets", request, headers=_key())
        return DatasetStatus.model_validate_json(answer.content)

    def estimate_dataset(self, request: DatasetRequest) -> DatasetEstimate:
        """Say what a dataset will cost, going by earlier ones of the same model."""
        answer = self._send("POST", "/v1/datasets/estimate", request)
        return DatasetEstimate.model_validate_json(answer.content)

    def dataset(self, dataset: str) -> DatasetStatus:
        """Say how a dataset is."""
        return self._get(f"/v1/datasets/{dataset}", DatasetStatus)

    def datasets(self, **filters: str) -> Iterator[DatasetStatus]:
        """List datasets; `filters` are `model` and `state`."""
        for found in self._pages("/v1/datasets", DatasetPage, filters):
            yield from found.items

    def watch_dataset(self, dataset: str) -> Iterator[DatasetStatus]:
        """Yield a dataset's status with every change, until its job ends."""
        yield from self._watch(f"/v1/datasets/{dataset}/events", DatasetStatus)

    def cancel_dataset(self, dataset: str) -> DatasetStatus:
        """Stop making a dataset."""
        answer = self._send("POST", f"/v1/datasets/{dataset}/cancel")
        return DatasetStatus.model_validate_json(answer.content)

    def delete_dataset(self, dataset: str) -> None:
        """Delete a dataset that is not in the making."""
        self._send("DELETE", f"/v1/datasets/{dataset}")

    def shards(self, dataset: str) -> Iterator[ShardLink]:
        """List a dataset's finished shards."""
        for found in self._pages(f"/v1/datasets/{dataset}/shards", ShardPage, {}):
            yield from found.items

    def download_dataset(self, dataset: str, folder: Path) -> None:
        """Download a finished dataset: shards, checked by their SHA-256, manifest and card.

        Shards that lie in `folder` already are not fetched again.

        Raises:
            ServerError: a shard arrived with other bytes than were made.
        """
        (folder / "shards").mkdir(parents=True, exist_ok=True)
        for link in self.shards(dataset):
            path = folder / "shards" / link.shard
            if not path.is_file() or _sha256(path) != link.sha256:
                self._download(link.url, path)
                if _sha256(path) != link.sha256:
                    path.unlink()
                    raise ServerError(f"{link.shard} of {dataset!r} arrived damaged: try again")
        for name in WHOLE:
            self._download(f"/v1/datasets/{dataset}/files/{name}", folder / name)

    def make_image(self, body: ImageBody) -> bytes:
        """Make one image, and wait for it; PNG."""
        wait = {"Prefer": f"wait={MOST_WAIT}"}
        answer = self._send("POST", "/v1/images", body, headers=wait)
        while answer.status_code == httpx2.codes.ACCEPTED:
            answer = self._send("GET", answer.headers["Location"], headers=wait)
        return answer.content

    def slides(self) -> Iterator[SlideInfo]:
        """List slides."""
        for found in self._pages("/v1/slides", SlidePage, {}):
            yield from found.items

    def slide(self, slide: str) -> SlideInfo:
        """Say what there is of a slide."""
        return self._get(f"/v1/slides/{slide}", SlideInfo)

    def register_slide(self, slide: str, source: str) -> SlideInfo:
        """Register a slide that lies in the store already, under the key `source`."""
        answer = self._send("POST", "/v1/slides", SlideReference(slide=slide, source=source))
        return SlideInfo.model_validate_json(answer.content)

    def upload_slide(self, slide: str, path: Path) -> SlideInfo:
        """Upload a slide's file in parts."""
        return self.finish_upload(self.begin_upload(slide, path), path)

    def begin_upload(self, slide: str, path: Path) -> Upload:
        """Begin to upload a slide's file; nothing is sent of it yet."""
        body = UploadBody(file=path.name, bytes=path.stat().st_size)
        answer = self._send("POST", f"/v1/slides/{slide}/uploads", body)
        return UploadStatus.model_validate_json(answer.content).upload

    def finish_upload(self, upload: Upload, path: Path) -> SlideInfo:
        """Send what is missing of an upload; call it again where that broke off.

        Raises:
            InputError: the file at `path` has another size than the upload.
        """
        if path.stat().st_size != upload.bytes:
            raise InputError(f"{path} is not the file of {upload.bytes} bytes that was begun with")
        place = f"/v1/slides/{upload.slide}/uploads/{upload.upload}"
        while missing := self._get(place, UploadStatus).missing:
            for part in missing:
                start = (part.number - 1) * upload.part_bytes
                self._put_file(part.url, path, start, part.bytes)
        return SlideInfo.model_validate_json(self._send("POST", f"{place}/complete").content)

    def annotate_slide(self, slide: str, path: Path) -> SlideInfo:
        """Upload a slide's annotation: GeoJSON, XML or a label image, as its name says."""
        place = f"/v1/slides/{slide}/annotation/{quote(path.name, safe='')}"
        answer = self._put_file(place, path, 0, path.stat().st_size)
        return SlideInfo.model_validate_json(answer.content)

    def download_labels(self, slide: str, path: Path) -> None:
        """Download the label map that ingest made of a slide's annotation; TIFF."""
        self._download(f"/v1/slides/{slide}/labels.tif", path)

    def delete_slide(self, slide: str) -> None:
        """Delete a slide and all that was made of it alone."""
        self._send("DELETE", f"/v1/slides/{slide}")

    def clusterings(self) -> Iterator[str]:
        """List clusterings by name."""
        for found in self._pages("/v1/clusters", Names, {}):
            yield from found.items

    def atlas(self, run: str) -> Atlas:
        """Return a clustering's tissue types."""
        return self._get(f"/v1/clusters/{run}", Atlas)

    def name_types(self, run: str, types: Mapping[int, TissueType]) -> Atlas:
        """Name, colour or merge some tissue types; the others stay as they are.

        It is refused where somebody else saves others at the same time.
        """
        found = self._send("GET", f"/v1/clusters/{run}")
        atlas = Atlas.model_validate_json(found.content)
        changed = {item.label: item.type for item in atlas.types} | dict(types)
        seen = {"If-Match": found.headers["ETag"]}
        body = RootModel[dict[int, TissueType]](changed)
        answer = self._send("PUT", f"/v1/clusters/{run}/types", body, headers=seen)
        return Atlas.model_validate_json(answer.content)

    def apply_types(self, run: str) -> JobStatus:
        """Make a clustering's regions anew, as its types are named and merged now."""
        answer = self._send("POST", f"/v1/clusters/{run}/apply")
        return JobStatus.model_validate_json(answer.content)

    def download_types(self, run: str, slide: str, path: Path) -> None:
        """Download a slide's map of tissue types as clustering found them; TIFF."""
        self._download(f"/v1/clusters/{run}/labels/{slide}.tif", path)

    def trainings(self) -> Iterator[str]:
        """List training runs by name."""
        for found in self._pages("/v1/runs", Names, {}):
            yield from found.items

    def training(self, run: str) -> TrainingRun:
        """Return a run's curves and sheets; `cancel_job` and `retry_job` take its `job`."""
        return self._get(f"/v1/runs/{run}", TrainingRun)

    def sample_sheet(self, run: str, sheet: str) -> bytes:
        """Return one of a run's `samples`; PNG."""
        return self._send("GET", f"/v1/runs/{run}/samples/{sheet}").content

    def models(self) -> Iterator[ModelInfo]:
        """List all versions of all models."""
        for found in self._pages("/v1/models", ModelPage, {}):
            yield from found.items

    def model(self, model: str, version: str = "1") -> ModelInfo:
        """Return a model version's record, and whether it is served."""
        return self._get(f"/v1/models/{model}/{version}", ModelInfo)

    def deploy_model(
        self, model: str, version: str = "1", body: DeployBody | None = None
    ) -> JobStatus:
        """Serve a version from now on; deploying an older one again is the way back."""
        place = f"/v1/models/{model}/{version}/deploy"
        answer = self._send("POST", place, body or DeployBody())
        return JobStatus.model_validate_json(answer.content)

    def reports(self, **filters: str) -> Iterator[ReportInfo]:
        """List evaluations; `filters` are `dataset` and `model` (<name>/<version>)."""
        for found in self._pages("/v1/reports", ReportPage, filters):
            yield from found.items

    def make_reader_study(self, body: StudyBody) -> NewStudy:
        """Make a blinded reader study; the readers' links are answered this once."""
        answer = self._send("POST", "/v1/reader-studies", body)
        return NewStudy.model_validate_json(answer.content)

    def reader_study(self, study: str) -> StudyStatus:
        """Say how far a reader study is."""
        return self._get(f"/v1/reader-studies/{study}", StudyStatus)

    def reader_studies(self) -> Iterator[StudyStatus]:
        """List reader studies."""
        for found in self._pages("/v1/reader-studies", StudyPage, {}):
            yield from found.items

    def renew_reader_link(self, study: str, reader: str) -> ReaderLink:
        """Give a reader (r1, r2, …) a new link; the one before is void."""
        answer = self._send("POST", f"/v1/reader-studies/{study}/readers/{reader}/link")
        return ReaderLink.model_validate_json(answer.content)

    def study_results(self, study: str) -> StudyResults:
        """Return the results of a reader study so far."""
        return self._get(f"/v1/reader-studies/{study}/results", StudyResults)

    def study_answers(self, study: str) -> str:
        """Return every answer of a reader study beside its truth, as CSV."""
        return self._send("GET", f"/v1/reader-studies/{study}/answers.csv").text

    def delete_reader_study(self, study: str) -> None:
        """Delete a reader study with its pictures and answers."""
        self._send("DELETE", f"/v1/reader-studies/{study}")

    def job(self, job: str) -> JobStatus:
        """Say how a job is."""
        return self._get(f"/v1/jobs/{job}", JobStatus)

    def jobs(self) -> Iterator[JobStatus]:
        """List jobs."""
        for found in self._pages("/v1/jobs", JobPage, {}):
            yield from found.items

    def watch_job(self, job: str) -> Iterator[JobStatus]:
        """Yield a job's status with every change, until it ends."""
        yield from self._watch(f"/v1/jobs/{job}/events", JobStatus)

    def cancel_job(self, job: str) -> JobStatus:
        """Stop a job."""
        answer = self._send("POST", f"/v1/jobs/{job}/cancel")
        return JobStatus.model_validate_json(answer.content)

    def retry_job(self, job: str) -> JobStatus:
        """Try again what failed or was cancelled."""
        answer = self._send("POST", f"/v1/jobs/{job}/retry")
        return JobStatus.model_validate_json(answer.content)

    def _send(
        self,
        method: str,
        path: str,
        body: BaseModel | None = None,
        *,
        headers: dict[str, str] | None = None,
        params: dict[str, str] | None = None,
    ) -> httpx2.Response:
        content = None if body is None else body.model_dump_json(exclude_unset=True)
        typed = {"Content-Type": "application/json"} if content is not None else {}
        try:
            answer = self._http.request(
                method, path, content=content, headers=(headers or {}) | typed, params=params
            )
        except httpx2.TransportError as error:
            raise ServerError(f"{self._http.base_url} cannot be reached: {error}") from error
        return _checked(answer)

    def _put_file(self, url: str, path: Path, start: int, size: int) -> httpx2.Response:
        """Send `size` bytes of a file, from `start` on, as they are read."""
        headers = {"Content-Length": str(size)}
        try:
            answer = self._server(url).put(url, content=_part(path, start, size), headers=headers)
        except httpx2.TransportError as error:
            raise ServerError(f"sending {path} broke off: {error}") from error
        return _checked(answer)

    def _server(self, url: str) -> httpx2.Client:
        """Return the client for a link that the gateway gave: to itself, or to the store."""
        return self._http if url.startswith("/") else self._others

    def _get(self, path: str, kind: type[M]) -> M:
        return kind.model_validate_json(self._send("GET", path).content)

    def _pages(self, path: str, kind: type[M], filters: dict[str, str]) -> Iterator[M]:
        cursor: str | None = None
        while True:
            params = filters | ({"cursor": cursor} if cursor else {})
            found = kind.model_validate_json(self._send("GET", path, params=params).content)
            yield found
            cursor = getattr(found, "next", None)
            if cursor is None:
                return

    def _watch(self, path: str, kind: type[M]) -> Iterator[M]:
        try:
            with self._http.sse(path) as events:
                if not events.response.is_success:
                    events.response.read()
                    _checked(events.response)
                for event in events:
                    if event.event == "status":
                        yield kind.model_validate_json(event.data)
        except httpx2.TransportError as error:
            raise ServerError(f"{self._http.base_url} broke off: {error}") from error

    def _download(self, url: str, path: Path) -> None:
        part = path.with_name(path.name + ".part")
        try:
            with self._server(url).stream("GET", url) as answer:
                if not answer.is_success:
                    answer.read()
                _checked(answer)
                with part.open("wb") as file:
                    for data in answer.iter_bytes(CHUNK):
                        file.write(data)
        except httpx2.TransportError as error:
            raise ServerError(f"{url} broke off: {error}") from error
        part.replace(path)


def _checked(answer: httpx2.Response) -> httpx2.Response:
    if answer.is_success:
        return answer
    if answer.headers.get("Content-Type") != "application/problem+json":
        raise ServerError(f"{answer.url.host} answered {answer.status_code}")
    problem = answer.json()
    if answer.is_server_error:
        raise ServerError(str(problem["detail"]))
    raise RefusedError(problem)


def _key() -> dict[str, str]:
    return {"Idempotency-Key": uuid.uuid4().hex}


def _part(path: Path, start: int, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while data := file.read(min(CHUNK, size)):
            size -= len(data)
            yield data


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
