"""/v1/reports: evaluations of datasets."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from services.gateway.api.access import Caller, MayRead
from services.gateway.api.json_bodies import JsonRoute
from services.gateway.api.paging import Cursor, Limit, page
from services.gateway.api.problems import documented, returning
from shared.contracts.base import Name
from shared.contracts.evaluate import Report, report_key
from shared.contracts.gateway import ReportInfo, ReportPage
from shared.storage import ObjectNotFoundError

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'none'"
)
"""Content-Security-Policy of a report's page, which embeds its style and picture."""

router = APIRouter(prefix="/v1/reports", tags=["reports"], route_class=JsonRoute)

ReportName = Annotated[Name, Path(description="name of the report")]


@router.get("")
def list_reports(
    caller: MayRead,
    limit: Limit = 50,
    cursor: Cursor = None,
    dataset: Annotated[str | None, Query(description="only reports on this dataset")] = None,
    model: Annotated[
        str | None, Query(description="only reports on datasets of this <name>/<version>")
    ] = None,
) -> ReportPage:
    """List evaluation reports by name, with their main figures."""

    def read(name: str) -> ReportInfo | None:
        info = _info(caller, name)
        if info is None or dataset not in {None, info.dataset} or model not in {None, info.model}:
            return None
        return info

    items, following = page(caller.store.folders("reports/"), cursor, limit, read)
    return ReportPage(items=items, next=following)


def _info(caller: Caller, name: str) -> ReportInfo | None:
    try:
        report = caller.store.get_model(report_key(name, "report.json"), Report)
    except ObjectNotFoundError:
        return None  # the report is still being written
    measured = [part for part in report.fidelity if part.rows]
    return ReportInfo(
        report=name,
        dataset=report.dataset,
        model=report.model,
        images=report.images,
        held_out=report.held_out,
        frechet={part.encoder: part.rows["dataset"].frechet for part in measured},
        floor={part.encoder: part.rows["floor"].frechet for part in measured},
        mean_iou={
            source.value: scores.mean_iou
            for source, scores in report.segmentation.items()
            if scores is not None
        },
        faithfulness=report.faithfulness.mean_iou if report.faithfulness else None,
    )


@router.get("/{report}", responses=documented(404))
def show_report(report: ReportName, caller: MayRead) -> Report:
    """Return all figures of a report, and the data that they were measured on."""
    return caller.store.get_model(report_key(report, "report.json"), Report)


@router.get(
    "/{report}/page",
    response_class=Response,
    responses=documented(404) | returning("text/html"),
)
def show_report_page(report: ReportName, caller: MayRead) -> Response:
    """Return a report as one HTML page."""
    data = caller.store.get(report_key(report, "report.html"))
    return Response(data, media_type="text/html", headers={"Content-Security-Policy": POLICY})
