"""Pages of reader studies: list, form, one study with its results, and the page for readers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from services.gateway.api.cohorts import list_region_sets
from services.gateway.api.datasets import list_datasets
from services.gateway.api.paging import MAX_LIMIT, Cursor
from services.gateway.api.reader_studies import find_own, list_reader_studies
from services.gateway.reader_study.results import study_results
from services.gateway.reader_study.studies import study_status
from services.gateway.web.pages import Maker, PageRoute, render
from shared.contracts.base import Name

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/read")
def reading_page(request: Request) -> Response:
    """Show the page on which readers judge images.

    Only its script sees the reader's token, because browsers do not send a link's fragment.
    """
    return render(request, "read.html")


@router.get("/reader-studies")
def reader_studies_page(request: Request, caller: Maker, cursor: Cursor = None) -> Response:
    """Show the list of studies."""
    studies = list_reader_studies(caller, 50, cursor)
    return render(request, "reader_studies.html", caller, studies=studies)


@router.get("/reader-studies/new")
def new_study_page(request: Request, caller: Maker) -> Response:
    """Show the form for a new study."""
    finished = [
        item for item in list_datasets(caller, MAX_LIMIT).items if item.state in {"done", "partial"}
    ]
    return render(
        request,
        "reader_study_new.html",
        caller,
        regions=list_region_sets(caller, MAX_LIMIT).items,
        datasets=finished,
    )


@router.get("/reader-studies/{study}")
def reader_study_page(request: Request, caller: Maker, study: Annotated[Name, Path()]) -> Response:
    """Show the progress of a study's readers, and its results."""
    record = find_own(caller, study).record
    return render(
        request,
        "reader_study.html",
        caller,
        study=study_status(caller.store, record),
        results=study_results(caller.store, record),
        names=record.readers,
    )
