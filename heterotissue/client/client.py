"""The client of the gateway: one typed method for each operation of the HTTP API."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import httpx2
from pydantic import RootModel

from heterotissue.client.http import MAX_WAIT_SECONDS, ServerError, Transport, read_record
from shared.contracts.base import Contract, Request
from shared.contracts.cluster import TissueType
from shared.contracts.deploy import DeployBody
from shared.contracts.gateway import (
    Atlas,
    DatasetEstimate,
    DatasetPage,
    DatasetStatus,
    EditBody,
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
"""Files of a dataset that `Client.download_dataset` fetches besides the shards."""


class Client:
    """A client of a gateway.

    Every method raises `RefusedError` if the gateway refuses the request, and `ServerError` if
    the gateway fails or cannot be reached.

    Args:
        server: address of the gateway, without /v1.
        token: a token of the gateway.
    """

    def __init__(self, server: str, token: str) -> None:
        self._http = Transport(server, token)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def submit(self, request: Request) -> JobStatus:
        """Submit a request of any stage except synthesize and image."""
        return self._http.post(f"/v1/{request.stage}", JobStatus, request, headers=_key())

    def submit_dataset(self, request: DatasetRequest) -> DatasetStatus:
        """Submit a dataset request."""
        return self._http.post("/v1/datasets", DatasetStatus, request, headers=_key())

    def estimate_dataset(self, request: DatasetRequest) -> DatasetEstimate:
        """Estimate a dataset's worker time (s) and size (bytes) from earlier ones of its model."""
        return self._http.post("/v1/datasets/estimate", DatasetEstimate, request)

    def dataset(self, dataset: str) -> DatasetStatus:
        """Return a dataset's status."""
        return self._http.get(f"/v1/datasets/{dataset}", DatasetStatus)

    def datasets(
        self, *, model: str | None = None, state: State | None = None
    ) -> Iterator[DatasetStatus]:
        """List datasets by name.

        Args:
            model: only datasets of this model, <name> or <name>/<version>.
            state: only datasets in this state.
        """
        filters = {"model": model, "state": state}
        yield from self._http.items("/v1/datasets", DatasetPage, filters)

    def watch_dataset(self, dataset: str) -> Iterator[DatasetStatus]:
        """Yield a dataset's status at every change, until the dataset's job ends."""
        yield from self._http.watch(f"/v1/datasets/{dataset}/events", DatasetStatus)

    def cancel_dataset(self, dataset: str) -> DatasetStatus:
        """Cancel the job of a dataset; finished shards stay."""
        return self._http.post(f"/v1/datasets/{dataset}/cancel", DatasetStatus)

    def delete_dataset(self, dataset: str) -> None:
        """Delete a dataset; the gateway refuses this while the dataset is being made."""
        self._http.send("DELETE", f"/v1/datasets/{dataset}")

    def shards(self, dataset: str) -> Iterator[ShardLink]:
        """List a dataset's finished shards."""
        yield from self._http.items(f"/v1/datasets/{dataset}/shards", ShardPage)

    def download_dataset(self, dataset: str, folder: Path) -> None:
        """Download a finished dataset into `folder`: its shards, manifest and card.

        Shards that are complete in `folder` are not downloaded again.

        Raises:
            ServerError: a shard does not have the SHA-256 that the gateway stated.
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
        """Make one image, wait for it, and return it as the bytes of a PNG."""
        return self._image("/v1/images", body)

    def edit_image(self, body: EditBody) -> bytes:
        """Edit an image, wait for it, and return it as the bytes of a PNG."""
        return self._image("/v1/edits", body)

    def _image(self, place: str, body: Contract) -> bytes:
        wait = {"Prefer": f"wait={MAX_WAIT_SECONDS}"}
        answer = self._http.send("POST", place, body, headers=wait)
        while answer.status_code == httpx2.codes.ACCEPTED:
            place = answer.headers.get("Location", "")
            answer = self._http.send("GET", place, headers=wait)
        return answer.content

    def slides(self) -> Iterator[SlideInfo]:
        """List slides by name."""
        yield from self._http.items("/v1/slides", SlidePage)

    def slide(self, slide: str) -> SlideInfo:
        """Return a slide's files, and its record once it is ingested."""
        return self._http.get(f"/v1/slides/{slide}", SlideInfo)

    def register_slide(self, slide: str, source: str) -> SlideInfo:
        """Register a slide whose file is already in the store, under the key `source`."""
        return self._http.post("/v1/slides", SlideInfo, SlideReference(slide=slide, source=source))

    def upload_slide(self, slide: str, path: Path) -> SlideInfo:
        """Upload a slide's file in parts."""
        return self.finish_upload(self.begin_upload(slide, path), path)

    def begin_upload(self, slide: str, path: Path) -> Upload:
        """Begin the upload of a slide's file; `finish_upload` sends it."""
        body = UploadBody(file=path.name, bytes=path.stat().st_size)
        return self._http.post(f"/v1/slides/{slide}/uploads", UploadStatus, body).upload

    def finish_upload(self, upload: Upload, path: Path) -> SlideInfo:
        """Send the missing parts of an upload and complete it; call again after an interruption.

        Raises:
            InputError: the file at `path` does not have the size of the upload.
        """
        size = path.stat().st_size
        if size != upload.bytes:
            raise InputError(
                f"{path} has {size} bytes and is not the file of {upload.bytes} bytes that the "
                "upload was begun with"
            )
        place = f"/v1/slides/{upload.slide}/uploads/{upload.upload}"
        while missing := self._http.get(place, UploadStatus).missing:
            for part in missing:
                start = (part.number - 1) * upload.part_bytes
                self._http.put_file(part.url, path, start, part.bytes)
        return self._http.post(f"{place}/complete", SlideInfo)

    def annotate_slide(self, slide: str, path: Path) -> SlideInfo:
        """Upload a slide's annotation; the suffix says if it is GeoJSON, XML or a label image."""
        place = f"/v1/slides/{slide}/annotation/{quote(path.name, safe='')}"
        answer = self._http.put_file(place, path, 0, path.stat().st_size)
        return read_record(SlideInfo, answer.content)

    def download_labels(self, slide: str, path: Path, cohort: str | None = None) -> None:
        """Download a label map that ingest made from a slide's annotation, as TIFF.

        Args:
            slide: name of the slide.
            path: the file to write.
            cohort: the cohort that made the map; None: the first by name.
        """
        chosen = f"?cohort={quote(cohort, safe='')}" if cohort else ""
        self._http.download(f"/v1/slides/{slide}/labels.tif{chosen}", path)

    def delete_slide(self, slide: str) -> None:
        """Delete a slide's files and label map; patches, features and regions of cohorts stay."""
        self._http.send("DELETE", f"/v1/slides/{slide}")

    def clusterings(self) -> Iterator[str]:
        """List clusterings by name."""
        yield from self._http.items("/v1/clusters", Names)

    def atlas(self, run: str) -> Atlas:
        """Return a clustering's tissue types."""
        return self._http.get(f"/v1/clusters/{run}", Atlas)

    def name_types(self, run: str, types: Mapping[int, TissueType]) -> Atlas:
        """Name, colour or merge some tissue types; the others stay unchanged.

        Args:
            run: name of the clustering.
            types: label → new type.

        Raises:
            RefusedError: somebody else changed the types at the same time.
        """
        answer = self._http.send("GET", f"/v1/clusters/{run}")
        atlas = read_record(Atlas, answer.content)
        changed = {item.label: item.type for item in atlas.types} | dict(types)
        seen = {"If-Match": answer.headers["ETag"]}
        body = RootModel[dict[int, TissueType]](changed)
        answer = self._http.send("PUT", f"/v1/clusters/{run}/types", body, headers=seen)
        return read_record(Atlas, answer.content)

    def apply_types(self, run: str) -> JobStatus:
        """Make a clustering's regions and gallery again, with its current types."""
        return self._http.post(f"/v1/clusters/{run}/apply", JobStatus)

    def download_types(self, run: str, slide: str, path: Path) -> None:
        """Download a slide's map of tissue types as TIFF; merges are not applied to it."""
        self._http.download(f"/v1/clusters/{run}/labels/{slide}.tif", path)

    def trainings(self) -> Iterator[str]:
        """List training runs by name."""
        yield from self._http.items("/v1/runs", Names)

    def training(self, run: str) -> TrainingRun:
        """Return a training run: its job, its curves and the names of its sample sheets."""
        return self._http.get(f"/v1/runs/{run}", TrainingRun)

    def sample_sheet(self, run: str, sheet: str) -> bytes:
        """Return a sample sheet of a training run, one of `TrainingRun.samples`, as PNG."""
        return self._http.send("GET", f"/v1/runs/{run}/samples/{sheet}").content

    def models(self) -> Iterator[ModelInfo]:
        """List all versions of all models."""
        yield from self._http.items("/v1/models", ModelPage)

    def model(self, model: str, version: str) -> ModelInfo:
        """Return a model version's record, and whether Triton serves it."""
        return self._http.get(f"/v1/models/{model}/{version}", ModelInfo)

    def deploy_model(self, model: str, version: str, body: DeployBody | None = None) -> JobStatus:
        """Load a version on Triton. To go back, deploy an older version again."""
        place = f"/v1/models/{model}/{version}/deploy"
        return self._http.post(place, JobStatus, body or DeployBody())

    def reports(
        self, *, dataset: str | None = None, model: str | None = None
    ) -> Iterator[ReportInfo]:
        """List evaluation reports by name.

        Args:
            dataset: only reports on this dataset.
            model: only reports on datasets of this model version, <name>/<version>.
        """
        filters = {"dataset": dataset, "model": model}
        yield from self._http.items("/v1/reports", ReportPage, filters)

    def make_reader_study(self, body: StudyBody) -> NewStudy:
        """Make a blinded reader study; only this answer contains the readers' links."""
        return self._http.post("/v1/reader-studies", NewStudy, body)

    def reader_study(self, study: str) -> StudyStatus:
        """Return a reader study's progress."""
        return self._http.get(f"/v1/reader-studies/{study}", StudyStatus)

    def reader_studies(self) -> Iterator[StudyStatus]:
        """List reader studies by name."""
        yield from self._http.items("/v1/reader-studies", StudyPage)

    def renew_reader_link(self, study: str, reader: str) -> ReaderLink:
        """Give a reader (r1, r2, …) a new link, and revoke the old one."""
        return self._http.post(f"/v1/reader-studies/{study}/readers/{reader}/link", ReaderLink)

    def study_results(self, study: str) -> StudyResults:
        """Return the results of a reader study so far."""
        return self._http.get(f"/v1/reader-studies/{study}/results", StudyResults)

    def study_answers(self, study: str) -> str:
        """Return every answer of a reader study with the true origin of its image, as CSV."""
        return self._http.send("GET", f"/v1/reader-studies/{study}/answers.csv").text

    def delete_reader_study(self, study: str) -> None:
        """Delete a reader study with its pictures and answers."""
        self._http.send("DELETE", f"/v1/reader-studies/{study}")

    def job(self, job: str) -> JobStatus:
        """Return a job's status."""
        return self._http.get(f"/v1/jobs/{job}", JobStatus)

    def jobs(self) -> Iterator[JobStatus]:
        """List jobs by id."""
        yield from self._http.items("/v1/jobs", JobPage)

    def watch_job(self, job: str) -> Iterator[JobStatus]:
        """Yield a job's status at every change, until the job ends."""
        yield from self._http.watch(f"/v1/jobs/{job}/events", JobStatus)

    def cancel_job(self, job: str) -> JobStatus:
        """Cancel a job; its finished shards stay."""
        return self._http.post(f"/v1/jobs/{job}/cancel", JobStatus)

    def retry_job(self, job: str) -> JobStatus:
        """Run a job's failed and cancelled shards again."""
        return self._http.post(f"/v1/jobs/{job}/retry", JobStatus)


def _key() -> dict[str, str]:
    return {"Idempotency-Key": uuid.uuid4().hex}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
