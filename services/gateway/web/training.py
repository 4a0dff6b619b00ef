"""Pages of training: runs with curves and samples, and the model versions they published."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from services.gateway.api.models import list_models, list_runs, run_status, show_run
from services.gateway.api.paging import MAX_LIMIT, Cursor
from services.gateway.api.reports import list_reports
from services.gateway.web.charts import curves
from services.gateway.web.pages import PageRoute, Visitor, render
from shared.contracts.base import Name

PARTS = {"vae": "Autoencoder", "decoder": "Decoder", "denoiser": "Denoiser"}
"""Part of a model → its title on the page, in the order of training."""

router = APIRouter(prefix="/training", include_in_schema=False, route_class=PageRoute)


@router.get("")
def training_page(request: Request, caller: Visitor, cursor: Cursor = None) -> Response:
    """Show the lists of training runs and model versions."""
    names = list_runs(caller, 50, cursor)
    runs = [{"name": name, "status": run_status(caller, name)} for name in names.items]
    models = list_models(caller, MAX_LIMIT).items
    return render(
        request,
        "training.html",
        caller,
        runs=runs,
        next=names.next,
        names=set(names.items),
        models=models,
        deployed={item.record.model for item in models if item.served},
    )


@router.get("/{run}")
def run_page(request: Request, caller: Visitor, run: Annotated[Name, Path()]) -> Response:
    """Show a run's curves and samples, and the reports of its models."""
    training = show_run(run, caller)
    own = [item.record for item in list_models(caller, MAX_LIMIT).items if item.record.run == run]
    reports = [
        report
        for record in own
        for report in list_reports(caller, MAX_LIMIT, model=str(record.ref)).items
    ]
    return render(
        request,
        "run.html",
        caller,
        run=training,
        status=run_status(caller, run),
        parts=[
            (title, curves(training.curves[kind]))
            for kind, title in PARTS.items()
            if kind in training.curves
        ],
        reports=reports,
    )
