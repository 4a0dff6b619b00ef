"""Pages of slides: the list, where slides are uploaded and ingested, and the viewer."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from services.gateway.api.access import Caller
from services.gateway.api.clusters import list_clusterings
from services.gateway.api.cohorts import list_cohorts, show_cohort
from services.gateway.api.paging import MAX_LIMIT, Cursor
from services.gateway.api.slide_lookup import find_slide, label_maps
from services.gateway.api.slides import list_slides
from services.gateway.web.atlas import shown_types
from services.gateway.web.pages import PageRoute, Visitor, render
from shared.contracts.annotations import ANNOTATION_SUFFIXES, OWN_SUFFIXES
from shared.contracts.base import Name, class_color
from shared.contracts.cluster import ClusterRecord, cluster_key
from shared.contracts.ingest import CohortRecord

router = APIRouter(prefix="/slides", include_in_schema=False, route_class=PageRoute)


@router.get("")
def slides_page(request: Request, caller: Visitor, cursor: Cursor = None) -> Response:
    """Show the list of slides."""
    return render(
        request,
        "slides.html",
        caller,
        slides=list_slides(caller, 50, cursor),
        annotations=",".join(ANNOTATION_SUFFIXES),
        own_suffixes=",".join(OWN_SUFFIXES),
        colors=[class_color(index) for index in range(256)],
    )


@router.get("/{slide}")
def slide_page(
    request: Request,
    caller: Visitor,
    slide: Annotated[Name, Path()],
    run: Annotated[Name | None, Query()] = None,
) -> Response:
    """Show one slide; a script draws its label maps over it."""
    info = find_slide(caller, slide)
    cohorts = _cohorts(caller, slide)
    names = {record.cohort: str(record.name_of(slide)) for record in cohorts}
    labelled = next(label_maps(caller.store, info), None)
    runs = _clusterings(caller, names)
    chosen = run if run in runs else next(iter(runs), None)
    return render(
        request,
        "slide.html",
        caller,
        info=info,
        cohorts=cohorts,
        names=names,
        classes=next((record.classes for record in cohorts if record.cohort == labelled), None),
        palette=labelled,
        runs=list(runs),
        run=chosen,
        run_slide=runs[chosen] if chosen else None,
        asked=chosen is not None and run == chosen,
        types=shown_types(caller, chosen) if chosen else [],
    )


def _cohorts(caller: Caller, slide: str) -> list[CohortRecord]:
    """Return the records of the cohorts that a slide belongs to."""
    records = (show_cohort(name, caller) for name in list_cohorts(caller, MAX_LIMIT).items)
    return [record for record in records if record.name_of(slide) is not None]


def _clusterings(caller: Caller, names: dict[str, str]) -> dict[str, str]:
    """Return the clusterings that have a slide: clustering → its cohort's name of the slide.

    Args:
        caller: sender of the request.
        names: cohort → its name of the slide.
    """
    found = {}
    for run in list_clusterings(caller, MAX_LIMIT).items:
        if caller.store.exists(cluster_key(run, "run.json")):
            cohort = caller.store.get_model(cluster_key(run, "run.json"), ClusterRecord).cohort
            name = names.get(cohort)
            if name and caller.store.exists(cluster_key(run, f"labels/{name}.tif")):
                found[run] = name
    return found
