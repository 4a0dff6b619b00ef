"""Pages of datasets: the list, the form for a new dataset, and one dataset."""

from __future__ import annotations

import json
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Path, Request, Response

from services.gateway.api.dataset_status import dataset_status, find_submission
from services.gateway.api.datasets import list_datasets
from services.gateway.api.models import list_models
from services.gateway.api.paging import MAX_LIMIT, Cursor
from services.gateway.api.problems import absent
from services.gateway.api.reports import list_reports
from services.gateway.web.pages import SHOWN_SAMPLING, Maker, PageRoute, Visitor, render
from shared.contracts.base import Name
from shared.contracts.models import ModelRecord
from shared.contracts.synthesize import DatasetRequest

router = APIRouter(prefix="/datasets", include_in_schema=False, route_class=PageRoute)


@router.get("")
def datasets_page(request: Request, caller: Visitor, cursor: Cursor = None) -> Response:
    """Show the list of datasets."""
    return render(request, "datasets.html", caller, datasets=list_datasets(caller, 50, cursor))


@router.get("/new")
def new_dataset_page(request: Request, caller: Maker) -> Response:
    """Show the form for a new dataset; a script fills it from the query string."""
    models = [_choice(item.record) for item in list_models(caller, MAX_LIMIT).items]
    return render(request, "dataset_new.html", caller, models=models)


def _choice(record: ModelRecord) -> dict[str, Any]:
    sampling = record.recipe.sampling
    return {
        "model": record.model,
        "version": record.version,
        "size": record.size,
        "mpp": record.mpp,
        "student": sampling.first_order,
        "sampling": sampling.model_dump(include=SHOWN_SAMPLING),
        "classes": [
            {"name": item.name, "color": item.color}
            for item in record.classes.items[record.classes.first :]
        ],
    }


@router.get("/{dataset}")
def dataset_page(request: Request, caller: Visitor, dataset: Annotated[Name, Path()]) -> Response:
    """Show one dataset; a script updates its progress."""
    submission = find_submission(caller.ledger, dataset)
    if submission is None:
        raise absent("dataset", dataset, "/datasets lists them")
    return render(
        request,
        "dataset.html",
        caller,
        dataset=dataset_status(
            caller.ledger, submission, caller.resources.progress(submission.job)
        ),
        reports=list_reports(caller, MAX_LIMIT, dataset=dataset).items,
        again=_query(submission.request),
    )


def _query(request: DatasetRequest) -> str:
    """Return the query string that fills the form with a request, except for the name."""
    fields = {
        "model": str(request.model_ref),
        "images": request.images,
        "proportions": json.dumps(request.proportions) if request.proportions else None,
        **request.model_dump(include=SHOWN_SAMPLING),
        "max_copied": request.max_copied,
        "seed": request.seed,
        "split": request.maps.splits[0],
        "slide": request.crops.slide,
        "exports": list(request.exports),
    }
    given = {name: value for name, value in fields.items() if value is not None}
    return urlencode(given, doseq=True)
