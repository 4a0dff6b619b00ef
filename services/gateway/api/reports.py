"""/v1/reports: evaluations of datasets."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from services.gateway.api.access import Caller, Reader
from services.gateway.api.paging import Cursor, Limit, page
from services.gateway.api.problems import documented, returning
from shared.contracts.base import Name
from shared.contracts.evaluate import report_key
from shared.contracts.gateway import ReportInfo, ReportPage
from shared.storage import ObjectNotFoundError

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'none'"
)
"""A report's page is one file: its style and its picture are in it, and it runs nothing."""

router = APIRouter(prefix="/v1/reports", tags=["reports"])

Report = Annotated[Name, Path(description="name of the report")]


@router.get("")
def list_reports(
    caller: Reader,
    limit: Limit = 50,
    cursor: Cursor = None,
    dataset: Annotated[str | None, Query(description="of this dataset")] = None,
    model: Annotated[str | None, Query(description="of <name>/<version>")] = None,
) -> ReportPage:
    """List evaluations by name, in short."""

    def read(name: str) -> ReportInfo | None:
        found = _info(caller, name)
        if found is None or dataset not in {None, found.dataset}:
            return None
        return found if model in {None, found.model} else None

    items, following = page(caller.store.folders("reports/"), cursor, limit, read)
    return ReportPage(items=items, next=following)


def _info(caller: Caller, name: str) -> ReportInfo | None:
    try:
        report = caller.store.get_json(report_key(name, "report.json"))
    except ObjectNotFoundError:
        return None  # it is being written
    measured = [part for part in report.get("fidelity", []) if part["rows"]]
    distances = {
        row: {part["encoder"]: part["rows"][row]["frechet"] for part in measured}
        for row in ("dataset", "floor")
    }
    segmenters = report.get("segmentation", {})
    faithfulness = report["faithfulness"]
    return ReportInfo(
        report=name,
        dataset=report["dataset"],
        model=report["model"],
        images=report["images"],
        held_out=report["held_out"],
        frechet=distances["dataset"],
        floor=distances["floor"],
        mean_iou={
            source: scores["mean_iou"]
            for source, scores in segmenters.items()
            if scores and scores["mean_iou"] is not None
        },
        faithfulness=faithfulness and faithfulness["mean_iou"],
    )


@router.get("/{report}", responses=documented(404))
def show_report(report: Report, caller: Reader) -> dict[str, Any]:
    """Return all figures of a report, with what they were measured on."""
    found: dict[str, Any] = caller.store.get_json(report_key(report, "report.json"))
    return found


@router.get(
    "/{report}/page",
    response_class=Response,
    responses=documented(404) | returning("text/html"),
)
def show_report_page(report: Report, caller: Reader) -> Response:
    """Return a report as one page of HTML."""
    data = caller.store.get(report_key(report, "report.html"))
    return Response(data, media_type="text/html", headers={"Content-Security-Policy": POLICY})
