"""What the end of an ingest says besides its counts: damage, resolutions, labels, empty cohorts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from services.ingest.annotations.outlines import UNCLOSED
from shared.contracts.ingest import IngestRequest

OVERPAINTED = 0.05
"""Share of a slide's outlines, covered by other classes, from which on a result names it."""

MPP_TOLERANCE = 0.05
"""Relative difference from the stated resolution that an overriding one is not remarked for."""

DOUBTFUL = 2.0
"""Factor between a given and a stated resolution from which on it is a caution."""


def remarks(request: IngestRequest, done: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Name what is odd about the slides that are done.

    Args:
        request: the request.
        done: slide → result of its unit.

    Returns:
        kind of remark → the slides or objects that it is about; no kind is empty.
    """
    return _on_slides(done) | _on_labels(request, done) | _on_renames(request, done)


def why_no_regions(request: IngestRequest, labelled: list[str]) -> str:
    """Say why a cohort has no regions, and what to do."""
    if request.classes is None:
        return "without annotations, 'htd embed' and then 'htd cluster' make training regions"
    if not labelled:
        return "no slide has an annotation: put them beside the slides, or give --labels"
    return request.regions.why_none()


def doubtful_resolutions(done: Mapping[str, dict[str, Any]]) -> list[str]:
    """Return a sentence on slides whose given resolution is far from what they state."""
    slides = [
        f"{name}: {part['mpp']:.4g} instead of {part['implied_mpp']:.4g} µm/px"
        for name, part in sorted(done.items())
        if part.get("implied_mpp")
        and not 1 / DOUBTFUL <= part["mpp"] / part["implied_mpp"] <= DOUBTFUL
    ]
    if not slides:
        return []
    more = f"; and {len(slides) - 5} more" if len(slides) > 5 else ""
    return [
        f"The resolution that was given for {len(slides)} slides differs from what they state by "
        f"more than a factor of {DOUBTFUL:g} ({'; '.join(slides[:5])}{more}): if it is wrong, so "
        "are all sizes."
    ]


def synthetic_slides(done: Mapping[str, dict[str, Any]]) -> list[str]:
    """Return a sentence on slides whose files say that they are synthetic."""
    slides = [name for name, part in sorted(done.items()) if part.get("synthetic")]
    if not slides:
        return []
    more = f" and {len(slides) - 5} more" if len(slides) > 5 else ""
    return [
        f"{len(slides)} of {len(done)} slides state that they are synthetic, whole or in part "
        f"({', '.join(slides[:5])}{more}): what was made or measured with them is not of real "
        "tissue alone."
    ]


def _on_slides(done: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Name the slides that are damaged in part, or are not at the resolution that they state."""
    damaged = {
        name: f"{part['damaged']:.2%}" for name, part in sorted(done.items()) if part.get("damaged")
    }
    overridden = {
        name: said for name, part in sorted(done.items()) if (said := _overridden(part)) is not None
    }
    found = {"damaged": damaged, "resolution_overridden": overridden}
    return {key: slides for key, slides in found.items() if slides}


def _overridden(part: dict[str, Any]) -> str | None:
    """Say how a slide's resolution differs from what it states; None if it does not."""
    if not part.get("stated_mpp"):
        return None
    x, y = part["stated_mpp"]
    if max(abs(part["mpp"] / x - 1), abs(part["mpp_y"] / y - 1)) <= MPP_TOLERANCE:
        return None
    stated = f"{x:.4g}" if x == y else f"{x:.4g} × {y:.4g}"
    return f"{part['mpp']:.4g} instead of {stated} µm/px"


def _on_renames(request: IngestRequest, done: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Name what was to be renamed, but is in no annotation and no mask."""
    found = [part.get("labels") or part for part in done.values()]
    labelled = [part for part in found if "renamed" in part]
    there = {name for part in labelled for name in part["renamed"]}
    unused = [name for name in request.label_names if name not in there]
    return {"renamed, but in no annotation": unused} if labelled and unused else {}


def _on_labels(request: IngestRequest, done: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Say what a cohort's labels lack: slides without, classes never seen, what was left out."""
    if request.classes is None or not request.slides:
        return {}
    labels = {name: done[name]["labels"] for name in sorted(done) if done[name].get("labels")}
    tiled = request.tiles is not None
    seen = {name for part in labels.values() for name in part["painted"]}
    skipped: Counter[str] = Counter()
    for part in labels.values():
        skipped.update(part["skipped"])
    notes: dict[str, Any] = {
        "unlabelled": sorted({item.slide for item in request.slides} & set(done) - set(labels)),
        "classes never seen": [
            name for name in request.classes.names[1:] if name not in seen and not tiled
        ],
        "overpainted slides": {
            name: f"{part['overpainted']:.0%}"
            for name, part in labels.items()
            if part["overpainted"] > OVERPAINTED
        },
        "objects left out": dict(sorted(skipped.items())),
        "unclosed outlines taken for lines": {
            name: count for name, part in labels.items() if (count := part["skipped"].get(UNCLOSED))
        },
        "annotations of another scan?": {
            name: f"states {part['mpp']:.4g} µm/px"
            for name, part in labels.items()
            if part.get("mpp")
        },
    }
    return {key: value for key, value in notes.items() if value}
