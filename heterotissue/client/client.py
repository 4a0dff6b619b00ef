"""The client's methods, typed by the contracts."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import httpx2
from pydantic import RootModel

from heterotissue.client.http import MAX_WAIT_SECONDS, ServerError, Transport
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
from shared.contracts.jobs import JobStatus, State
from shared.contracts.reader_study import (
    NewStudy,
    ReaderLink,
    StudyBody,
    StudyPage,
    StudyResults,
    StudyStatus,
)
from shared.contracts.synthesize import DatasetRequest
from shared.errors import InputError

FILES = ("README.md", "croissant.json", "dataset.json", "manifest.parquet", "preview.png")
"""A dataset's files besides its shards."""


class Client:
    """A client of a gateway, with a method for each thing that the gateway does.

    Every method raises `RefusedError` if the gateway refuses the request, and `ServerError` if
    it fails or cannot be reached.

    Args:
        server: address of the gateway, without /v1.
        token: a token of the gateway.
    """

    def __init__(self, server: str, token: str) -> None:
        self._http = Transport(server, token)

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

    def submit(self, request: Request) -> JobStatus:
        """Submit a request of any stage but synthesize and image."""
        return self._http.post(f"/v1/{request.stage}", JobStatus, request, headers=_key())

    def submit_dataset(self, request: DatasetRequest) -> DatasetStatus:
        """Submit a dataset request."""
        return self._http.post("/v1/datasets", DatasetStatus, request, headers=_key())

    def estimate_dataset(self, request: DatasetRequest) -> DatasetEstimate:
        """Estimate the cost of a dataset from earlier ones of the same model."""
        return self._http.post("/v1/datasets/estimate", DatasetEstimate, request)

    def dataset(self, dataset: str) -> DatasetStatus:
        """Return a dataset's status."""
        return self._http.get(f"/v1/datasets/{dataset}", DatasetStatus)

    def datasets(
        self, *, model: str | None = None, state: State | None = None
    ) -> Iterator[DatasetStatus]:
        """List datasets, or those of one model (<name>/<version>) or in one state."""
        filters = {"model": model, "state": state}
        yield from self._http.items("/v1/datasets", DatasetPage, filters)

    def watch_dataset(self, dataset: str) -> Iterator[DatasetStatus]:
        """Yield a dataset's status with every change, until its job ends."""
        yield from self._http.watch(f"/v1/datasets/{dataset}/events", DatasetStatus)

    def cancel_dataset(self, dataset: str) -> DatasetStatus:
        """Stop making a dataset."""
        return self._http.post(f"/v1/datasets/{dataset}/cancel", DatasetStatus)

    def delete_dataset(self, dataset: str) -> None:
        """Delete a dataset that is not being made."""
        self._http.send("DELETE", f"/v1/datasets/{dataset}")

    def shards(self, dataset: str) -> Iterator[ShardLink]:
        """List a dataset's finished shards."""
        yield from self._http.items(f"/v1/datasets/{dataset}/shards", ShardPage)

    def download_dataset(self, dataset: str, folder: Path) -> None:
        """Download a finished dataset: shards, checked by their SHA-256, manifest and card.

        Shards that are already in `folder` are not downloaded again.

        Raises:
            ServerError: a shard arrived damaged.
        """
        (folder / "shards").mkdir(parents=True, exist_ok=True)
        for link in self.shards(dataset):
            path = folder / "shards" / link.shard
            if not path.is_file() or _sha256(path) != link.sha256:
                self._http.download(link.url, path)
                if _sha256(path) != link.sha256:
                    path.unlink()
                    raise ServerError(f"{link.shard} of {dataset!r} arrived damaged: try again")
        for name in FILES:
            self._http.download(f"/v1/datasets/{dataset}/files/{name}", folder / name)

    def make_image(self, body: ImageBody) -> bytes:
        """Make one image, wait for it, and return it as PNG."""
        wait = {"Prefer": f"wait={MAX_WAIT_SECONDS}"}
        answer = self._http.send("POST", "/v1/images", body, headers=wait)
        while answer.status_code == httpx2.codes.ACCEPTED:
            answer = self._http.send("GET", answer.headers["Location"], headers=wait)
        return answer.content

    def slides(self) -> Iterator[SlideInfo]:
        """List slides."""
        yield from self._http.items("/v1/slides", SlidePage)

    def slide(self, slide: str) -> SlideInfo:
        """Return a slide's record."""
        return self._http.get(f"/v1/slides/{slide}", SlideInfo)

    def register_slide(self, slide: str, source: str) -> SlideInfo:
        """Register a slide that is already in the store, under the key `source`."""
        return self._http.post("/v1/slides", SlideInfo, SlideReference(slide=slide, source=source))

    def upload_slide(self, slide: str, path: Path) -> SlideInfo:
        """Upload a slide's file in parts."""
        return self.finish_upload(self.begin_upload(slide, path), path)

    def begin_upload(self, slide: str, path: Path) -> Upload:
        """Begin the upload of a slide's file; `finish_upload` sends it."""
        body = UploadBody(file=path.name, bytes=path.stat().st_size)
        return self._http.post(f"/v1/slides/{slide}/uploads", UploadStatus, body).upload

    def finish_upload(self, upload: Upload, path: Path) -> SlideInfo:
        """Send the missing parts of an upload; after an interruption, call it again.

        Raises:
            InputError: the file at `path` does not have the size of the upload.
        """
        if path.stat().st_size != upload.bytes:
            raise InputError(f"{path} is not the file of {upload.bytes} bytes that was begun with")
        place = f"/v1/slides/{upload.slide}/uploads/{upload.upload}"
        while missing := self._http.get(place, UploadStatus).missing:
            for part in missing:
                start = (part.number - 1) * upload.part_bytes
                self._http.put_file(part.url, path, start, part.bytes)
        return self._http.post(f"{place}/complete", SlideInfo)

    def annotate_slide(self, slide: str, path: Path) -> SlideInfo:
        """Upload a slide's annotation: GeoJSON, XML or a label image, by its suffix."""
        place = f"/v1/slides/{slide}/annotation/{quote(path.name, safe='')}"
        answer = self._http.put_file(place, path, 0, path.stat().st_size)
        return SlideInfo.model_validate_json(answer.content)

    def download_labels(self, slide: str, path: Path) -> None:
        """Download the label map that ingest made of a slide's annotation; TIFF."""
        self._http.download(f"/v1/slides/{slide}/labels.tif", path)

    def delete_slide(self, slide: str) -> None:
        """Delete a slide and everything that was made of it alone."""
        self._http.send("DELETE", f"/v1/slides/{slide}")

    def clusterings(self) -> Iterator[str]:
        """List clusterings by name."""
        yield from self._http.items("/v1/clusters", Names)

    def atlas(self, run: str) -> Atlas:
        """Return a clustering's tissue types."""
        return self._http.get(f"/v1/clusters/{run}", Atlas)

    def name_types(self, run: str, types: Mapping[int, TissueType]) -> Atlas:
        """Name, colour or merge some tissue types; the others stay unchanged.

        Raises:
            RefusedError: somebody else changed the types at the same time.
        """
        answer = self._http.send("GET", f"/v1/clusters/{run}")
        atlas = Atlas.model_validate_json(answer.content)
        changed = {item.label: item.type for item in atlas.types} | dict(types)
        seen = {"If-Match": answer.headers["ETag"]}
        body = RootModel[dict[int, TissueType]](changed)
        answer = self._http.send("PUT", f"/v1/clusters/{run}/types", body, headers=seen)
        return Atlas.model_validate_json(answer.content)

    def apply_types(self, run: str) -> JobStatus:
        """Make a clustering's regions again from its current types."""
        return self._http.post(f"/v1/clusters/{run}/apply", JobStatus)

    def download_types(self, run: str, slide: str, path: Path) -> None:
        """Download a slide's map of tissue types, before any merging; TIFF."""
        self._http.download(f"/v1/clusters/{run}/labels/{slide}.tif", path)

    def trainings(self) -> Iterator[str]:
        """List training runs by name."""
        yield from self._http.items("/v1/runs", Names)

    def training(self, run: str) -> TrainingRun:
        """Return a run's curves and sheets; `cancel_job` and `retry_job` take its `job`."""
        return self._http.get(f"/v1/runs/{run}", TrainingRun)

    def sample_sheet(self, run: str, sheet: str) -> bytes:
        """Return one of a run's `samples`; PNG."""
        return self._http.send("GET", f"/v1/runs/{run}/samples/{sheet}").content

    def models(self) -> Iterator[ModelInfo]:
        """List all versions of all models."""
        yield from self._http.items("/v1/models", ModelPage)

    def model(self, model: str, version: str = "1") -> ModelInfo:
        """Return a model version's record, and whether Triton serves it."""
        return self._http.get(f"/v1/models/{model}/{version}", ModelInfo)

    def deploy_model(
        self, model: str, version: str = "1", body: DeployBody | None = None
    ) -> JobStatus:
        """Load a version on Triton; deploying an older version again is the way back."""
        place = f"/v1/models/{model}/{version}/deploy"
        return self._http.post(place, JobStatus, body or DeployBody())

    def reports(
        self, *, dataset: str | None = None, model: str | None = None
    ) -> Iterator[ReportInfo]:
        """List evaluations, or those of one dataset or one model (<name>/<version>)."""
        filters = {"dataset": dataset, "model": model}
        yield from self._http.items("/v1/reports", ReportPage, filters)

    def make_reader_study(self, body: StudyBody) -> NewStudy:
        """Make a blinded reader study, and return its readers' links, which are shown only once."""
        return self._http.post("/v1/reader-studies", NewStudy, body)

    def reader_study(self, study: str) -> StudyStatus:
        """Return a reader study's progress."""
        return self._http.get(f"/v1/reader-studies/{study}", StudyStatus)

    def reader_studies(self) -> Iterator[StudyStatus]:
        """List reader studies."""
        yield from self._http.items("/v1/reader-studies", StudyPage)

    def renew_reader_link(self, study: str, reader: str) -> ReaderLink:
        """Give a reader (r1, r2, …) a new link; the old link becomes void."""
        return self._http.post(f"/v1/reader-studies/{study}/readers/{reader}/link", ReaderLink)

    def study_results(self, study: str) -> StudyResults:
        """Return the results of a reader study so far."""
        return self._http.get(f"/v1/reader-studies/{study}/results", StudyResults)

    def study_answers(self, study: str) -> str:
        """Return every answer of a reader study beside its truth, as CSV."""
        return self._http.send("GET", f"/v1/reader-studies/{study}/answers.csv").text

    def delete_reader_study(self, study: str) -> None:
        """Delete a reader study with its pictures and answers."""
        self._http.send("DELETE", f"/v1/reader-studies/{study}")

    def job(self, job: str) -> JobStatus:
        """Return a job's status."""
        return self._http.get(f"/v1/jobs/{job}", JobStatus)

    def jobs(self) -> Iterator[JobStatus]:
        """List jobs."""
        yield from self._http.items("/v1/jobs", JobPage)

    def watch_job(self, job: str) -> Iterator[JobStatus]:
        """Yield a job's status with every change, until it ends."""
        yield from self._http.watch(f"/v1/jobs/{job}/events", JobStatus)

    def cancel_job(self, job: str) -> JobStatus:
        """Stop a job."""
        return self._http.post(f"/v1/jobs/{job}/cancel", JobStatus)

    def retry_job(self, job: str) -> JobStatus:
        """Try again what failed or was cancelled."""
        return self._http.post(f"/v1/jobs/{job}/retry", JobStatus)


def _key() -> dict[str, str]:
    return {"Idempotency-Key": uuid.uuid4().hex}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
