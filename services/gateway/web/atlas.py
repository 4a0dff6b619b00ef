"""Atlas: the pages of clusterings, on which people view, name and merge tissue types."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from services.gateway.api.access import Caller
from services.gateway.api.clusters import list_clusterings, show_atlas
from services.gateway.api.paging import Cursor, readable
from services.gateway.api.problems import absent
from services.gateway.web.pages import PageRoute, Visitor, render
from shared.contracts.base import Name
from shared.contracts.cluster import cluster_key
from shared.contracts.gateway import AtlasType
from shared.tissue_types import classes_of

router = APIRouter(prefix="/atlas", include_in_schema=False, route_class=PageRoute)


@router.get("")
def atlases_page(request: Request, caller: Visitor, cursor: Cursor = None) -> Response:
    """Show the list of clusterings."""
    names = list_clusterings(caller, 50, cursor)
    finished = [run for run in names.items if _is_finished(caller, run)]
    runs = [readable(run, lambda run: show_atlas(run, caller, Response())) for run in finished]
    return render(request, "atlases.html", caller, runs=list(filter(None, runs)), next=names.next)


@router.get("/{run}")
def atlas_page(request: Request, caller: Visitor, run: Annotated[Name, Path()]) -> Response:
    """Show the tissue types of a clustering; a script saves the visitor's changes."""
    if not _is_finished(caller, run):
        raise absent("clustering", run, "/atlas lists them")
    answer = Response()
    atlas = show_atlas(run, caller, answer)
    keys = set(caller.store.list(cluster_key(run, "examples/")))
    return render(
        request,
        "atlas.html",
        caller,
        atlas=atlas,
        tag=answer.headers["ETag"],
        examples={
            entry.label
            for entry in atlas.types
            if cluster_key(run, f"examples/{entry.label}.png") in keys
        },
    )


def shown_types(caller: Caller, run: str) -> list[dict[str, Any]]:
    """Return the tissue types of a clustering that have patches, the largest first.

    Returns:
        `label`, `name`, `color` and `patches` (number of patches) of each type; merged types have
        the name and the colour of their class.
    """
    types: tuple[AtlasType, ...] = show_atlas(run, caller, Response()).types
    classes, table = classes_of({entry.label: entry.type for entry in types})
    drawn = [(entry, classes.items[table[entry.label]]) for entry in types]
    return [
        {"label": entry.label, "name": item.name, "color": item.color, "patches": entry.patches}
        for entry, item in sorted(drawn, key=lambda pair: -pair[0].patches)
        if entry.patches
    ]


def _is_finished(caller: Caller, run: str) -> bool:
    return caller.store.exists(cluster_key(run, "run.json"))
