"""/v1/clusters: clusterings and their atlases of tissue types, which people name and merge."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pyarrow.compute as pc
from fastapi import APIRouter, Header, Path, Response
from fastapi.responses import StreamingResponse

from services.gateway.api.access import Caller, MayAnnotate, MayRead
from services.gateway.api.json_bodies import JsonRoute
from services.gateway.api.paging import Cursor, Limit, page
from services.gateway.api.problems import ProblemError, blaming, documented, returning
from services.gateway.api.slide_lookup import SlideName
from services.gateway.api.streams import Wanted, send_object, sending
from shared.contracts.base import Name
from shared.contracts.cluster import (
    ClusterRecord,
    ClusterRequest,
    TissueType,
    cluster_key,
    write_types,
)
from shared.contracts.gateway import Atlas, AtlasType, Names, TypePlace, TypePlaces
from shared.contracts.jobs import JobStatus
from shared.jobs import names
from shared.storage import sha256
from shared.storage.formats import read_table
from shared.tissue_types import check_types, classes_of, read_types

NEAREST = 10
"""Number of patches that are listed for a type on each slide."""

router = APIRouter(prefix="/v1/clusters", tags=["clusters"], route_class=JsonRoute)

Run = Annotated[Name, Path(description="name of the clustering")]


def _record(caller: Caller, run: str) -> ClusterRecord:
    return caller.store.get_model(cluster_key(run, "run.json"), ClusterRecord)


def _tag(caller: Caller, run: str) -> str:
    return f'"{sha256(caller.store.get(cluster_key(run, "types.yaml")))[:32]}"'


@router.get("")
def list_clusterings(caller: MayRead, limit: Limit = 50, cursor: Cursor = None) -> Names:
    """List clusterings by name."""
    items, following = page(caller.store.folders("clusters/"), cursor, limit, str)
    return Names(items=items, next=following)


@router.get("/{run}", responses=documented(404))
def show_atlas(run: Run, caller: MayRead, response: Response) -> Atlas:
    """Return a clustering's tissue types: their names, colours, merges and patch counts."""
    record = _record(caller, run)
    response.headers["ETag"] = _tag(caller, run)
    types = read_types(caller.store, run, record.k)
    return Atlas(
        run=run,
        cohort=record.cohort,
        encoder=record.encoder,
        types=tuple(
            AtlasType(
                label=label,
                type=kind,
                patches=record.counts[label - 1],
                mean_distance=record.mean_distance[label - 1],
            )
            for label, kind in sorted(types.items())
        ),
    )


@router.get(
    "/{run}/gallery.png",
    response_class=Response,
    responses=documented(404) | returning("image/png"),
)
def show_gallery(run: Run, caller: MayRead) -> Response:
    """Return a picture of example patches, with one row for each type."""
    return Response(caller.store.get(cluster_key(run, "gallery.png")), media_type="image/png")


@router.get(
    "/{run}/types/{label}.png",
    response_class=Response,
    responses=documented(404) | returning("image/png"),
)
def show_examples(run: Run, label: Annotated[int, Path(ge=1, le=255)], caller: MayRead) -> Response:
    """Return a picture of example patches of one type, side by side."""
    data = caller.store.get(cluster_key(run, f"examples/{label}.png"))
    return Response(data, media_type="image/png")


@router.get("/{run}/types/{label}/slides", responses=documented(404))
def list_places(
    run: Run,
    label: Annotated[int, Path(ge=1, le=255)],
    caller: MayRead,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> TypePlaces:
    """List the slides that have a type, with each slide's patches nearest to the type's centre."""
    prefix, suffix = cluster_key(run, "assignments/"), ".parquet"
    _record(caller, run)

    def read(slide: str) -> TypePlace | None:
        table = read_table(caller.store, f"{prefix}{slide}{suffix}", local=True)
        table = table.filter(pc.equal(table["cluster"], label - 1))
        if not table.num_rows:
            return None
        order = np.argsort(table["distance"], kind="stable")[:NEAREST]
        xs, ys = (np.asarray(table[name])[order].tolist() for name in ("x", "y"))
        nearest = tuple(zip(xs, ys, strict=True))
        return TypePlace(slide=slide, patches=table.num_rows, x=xs[0], y=ys[0], nearest=nearest)

    names = (key.removeprefix(prefix).removesuffix(suffix) for key in caller.store.list(prefix))
    items, following = page(names, cursor, limit, read)
    return TypePlaces(items=items, next=following)


@router.get(
    "/{run}/labels/{slide}.tif",
    response_class=StreamingResponse,
    responses=documented(404) | sending("image/tiff"),
)
def get_type_map(run: Run, slide: SlideName, caller: MayRead, wanted: Wanted) -> Response:
    """Download a slide's map of tissue types as TIFF; merges are not applied to it."""
    key = cluster_key(run, f"labels/{slide}.tif")
    return send_object(caller.store, key, wanted, "image/tiff", f"{slide}-{run}.tif")


@router.put("/{run}/types", responses=documented(404, 412))
def put_types(
    run: Run,
    types: dict[int, TissueType],
    caller: MayAnnotate,
    response: Response,
    if_match: Annotated[
        str | None,
        Header(description="ETag of the atlas; 412 if the atlas has changed since then"),
    ] = None,
) -> Atlas:
    """Set the names, colours and merges of all types.

    Regions keep the old types until POST /v1/clusters/{run}/apply.
    """
    record = _record(caller, run)
    if if_match is not None and _tag(caller, run) not in if_match:
        raise ProblemError(
            412,
            "changed",
            f"the types of {run!r} were changed by somebody else since then",
            remedy="GET the atlas, and make your changes again",
        )
    with blaming("#"):
        check_types(types, record.k, "the body")
        classes_of(types)
    caller.store.put(cluster_key(run, "types.yaml"), write_types(types))
    caller.audit("name types", run=run)
    return show_atlas(run, caller, response)


@router.post("/{run}/apply", status_code=202, responses=documented(404, 409))
def apply_types(run: Run, caller: MayAnnotate, response: Response) -> JobStatus:
    """Make the clustering's regions and gallery again, with its current names and merges."""
    _record(caller, run)
    request = ClusterRequest.model_validate(caller.ledger.request(_job(caller, run)))
    job = caller.submit(request)  # its id follows from the types
    response.headers["Location"] = f"/v1/jobs/{job}"
    return caller.status(job)


def _job(caller: Caller, run: str) -> str:
    """Find the finished job that made a clustering.

    Raises:
        ProblemError: the clustering has no finished job (409).
    """
    job = names.owner(caller.store, f"clusters/{run}")
    ended = caller.ledger.result(job) if job else None
    if job is not None and ended is not None and ended.state in {"done", "partial"}:
        return job
    raise ProblemError(
        409,
        "no-finished-job",
        f"no finished job of clustering {run!r} is in the store",
        remedy="wait for its job to end, or POST /v1/cluster again",
    )
