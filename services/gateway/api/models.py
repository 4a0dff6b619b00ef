"""/v1/runs and /v1/models: training runs, and the model versions that they publish."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import TypeAdapter, ValidationError

from services.gateway.api.access import Caller, MayRead, MayTrain, public
from services.gateway.api.json_bodies import JsonRoute
from services.gateway.api.paging import Cursor, Limit, page
from services.gateway.api.problems import ProblemError, documented, returning
from shared.contracts.base import Name
from shared.contracts.deploy import DeployBody, DeployRequest
from shared.contracts.gateway import ModelInfo, ModelPage, Names, TrainingRun
from shared.contracts.jobs import JobStatus
from shared.contracts.models import ModelRef
from shared.contracts.train import training_key
from shared.jobs import names
from shared.models import read_model
from shared.serving.deployments import deployments, next_number

router = APIRouter(prefix="/v1", tags=["models"], route_class=JsonRoute)

log = logging.getLogger(__name__)

_ROW: TypeAdapter[dict[str, float]] = TypeAdapter(dict[str, float])

Run = Annotated[Name, Path(description="name of the training run")]
Model = Annotated[Name, Path(description="name of the model")]
Version = Annotated[Name, Path(description="version of the model")]


@router.get("/runs")
def list_runs(caller: MayRead, limit: Limit = 50, cursor: Cursor = None) -> Names:
    """List training runs by name."""
    items, following = page(caller.store.folders("training/"), cursor, limit, str)
    return Names(items=items, next=following)


@router.get("/runs/{run}", responses=documented(404))
def show_run(run: Run, caller: MayRead) -> TrainingRun:
    """Return a training run's curves, the names of its sample sheets, and its job.

    The job can be cancelled and retried at /v1/jobs.
    """
    prefix = training_key(run, "")
    status = run_status(caller, run)
    curves: dict[str, list[dict[str, float]]] = {}
    for key in caller.store.list(prefix + "metrics/"):
        kind = PurePosixPath(key).name.partition("-")[0]
        curves.setdefault(kind, []).extend(_rows(caller, key))
    samples = [PurePosixPath(key).name for key in caller.store.list(prefix + "samples/")]
    if status is None and not curves:
        raise ProblemError(404, "no-run", f"there is no training run {run!r}")
    return TrainingRun(
        run=run,
        job=status.job if status else None,
        state=status.state if status else None,
        curves={kind: tuple(rows) for kind, rows in curves.items()},
        samples=tuple(samples),
    )


def _rows(caller: Caller, key: str) -> Iterator[dict[str, float]]:
    """Yield the rows of an object of metrics; a damaged line is logged, and left out."""
    for line in caller.store.get(key).splitlines():
        row: dict[str, float] = {}
        with suppress(ValidationError):
            row = _ROW.validate_json(line)
        if math.isfinite(row.get("step", math.nan)):
            yield row
        else:
            log.error("a line of %s is damaged, and left out", key)


def run_status(caller: Caller, run: str) -> JobStatus | None:
    """Return the status of the job that a training run belongs to; None: it belongs to none."""
    job = names.owner(caller.store, f"training/{run}")
    found = caller.ledger.find(job) if job else None
    return public(found) if found else None


@router.get(
    "/runs/{run}/samples/{sheet}",
    response_class=Response,
    responses=documented(404) | returning("image/png"),
)
def show_samples(
    run: Run, sheet: Annotated[str, Path(pattern=r"^\d{1,12}\.png$")], caller: MayRead
) -> Response:
    """Return a sample sheet of a training run as PNG."""
    return Response(caller.store.get(training_key(run, f"samples/{sheet}")), media_type="image/png")


@router.get("/models")
def list_models(caller: MayRead, limit: Limit = 50, cursor: Cursor = None) -> ModelPage:
    """List all versions of all models by <name>/<version>."""
    items, following = page(_versions(caller), cursor, limit, lambda name: _info(caller, name))
    return ModelPage(items=items, next=following)


def _versions(caller: Caller) -> Iterator[str]:
    for model in caller.store.folders("models/"):
        for version in caller.store.folders(f"models/{model}/"):
            yield f"{model}/{version}"


def _info(caller: Caller, name: str) -> ModelInfo | None:
    ref = ModelRef.parse(name)
    if not caller.store.exists(ref.key):
        return None  # the version is still being written
    history = deployments(caller.store, ref.name)
    served = bool(history) and history[-1].version == ref.version
    return ModelInfo(record=read_model(caller.store, ref), served=served)


@router.get("/models/{model}/{version}", responses=documented(404))
def show_model(model: Model, version: Version, caller: MayRead) -> ModelInfo:
    """Return a model version's record, and whether Triton serves it."""
    info = _info(caller, f"{model}/{version}")
    if info is None:
        raise ProblemError(
            404,
            "no-model",
            f"there is no model {model}/{version}",
            remedy="GET /v1/models lists those there are",
        )
    return info


@router.get(
    "/models/{model}/{version}/card",
    response_class=Response,
    responses=documented(404) | returning("text/markdown"),
)
def show_model_card(model: Model, version: Version, caller: MayRead) -> Response:
    """Return the model card of a version as Markdown."""
    data = caller.store.get(ModelRef(model, version).prefix + "README.md")
    return Response(data, media_type="text/markdown")


@router.post("/models/{model}/{version}/publish", status_code=202, include_in_schema=False)
@router.post("/models/{model}/{version}/deploy", status_code=202, responses=documented(404))
def deploy_model(
    model: Model, version: Version, body: DeployBody, caller: MayTrain, response: Response
) -> JobStatus:
    """Serve this version on Triton. To go back, deploy an older version again."""
    show_model(model, version, caller)
    request = DeployRequest(
        model=model,
        version=version,
        number=next_number(caller.ledger, model),
        engine=body.engine,
        device=body.device,
    )
    job = caller.submit(request)
    response.headers["Location"] = f"/v1/jobs/{job}"
    return caller.status(job)
