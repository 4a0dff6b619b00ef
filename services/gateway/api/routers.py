"""The routers of the HTTP API, in the order in which paths are matched."""

from __future__ import annotations

from services.gateway.api import (
    admin,
    clusters,
    cohorts,
    datasets,
    edits,
    field_tiles,
    fields,
    images,
    jobs,
    models,
    ops,
    overlays,
    reader_studies,
    reports,
    slides,
    tiles,
    uploads,
)

ROUTERS = tuple(
    module.router
    for module in (
        datasets,
        images,
        edits,
        field_tiles,
        fields,
        slides,
        uploads,
        tiles,
        overlays,
        cohorts,
        clusters,
        models,
        reader_studies,
        reports,
        jobs,
        admin,
        ops,
    )
)
