"""From an annotation to the label map of its slide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from services.ingest.annotations.class_names import classify
from services.ingest.annotations.label_images import PANDA_NAMES, frame_of, resampled
from services.ingest.annotations.outlines import Annotation, SlideGeometry, settle
from services.ingest.annotations.placement import Tissue, place
from services.ingest.annotations.rasterize import in_order, paint
from services.ingest.annotations.sandboxed import read_annotation
from shared.arrays import UInt8
from shared.contracts.annotations import LabelFormat
from shared.contracts.base import Classes
from shared.contracts.ingest import IngestRequest, LabelsOrigin, SlideSource
from shared.errors import InputError
from shared.imaging.label_map import write_label_map
from shared.imaging.mask_values import lookup
from shared.imaging.sandboxed_mask import open_mask

OTHER_SCAN = 1.1
"""Ratio of resolutions beyond which an annotation may have been drawn on another scan."""


@dataclass
class Drawn:
    """What was painted of an annotation, and what was left out.

    Attributes:
        format: format of the annotation.
        origin: corner that its coordinates count from, 'slide' or 'bounds'.
        painted: class index → pixels of the label map.
        drawn, covered: class index → pixels inside its outlines, and those of them that show
            another class; empty for masks.
        skipped: number of objects left out, by reason.
        on_tissue: labelled pixels that lie on tissue.
        mpp: µm per pixel of another scan that the annotation states to be of.
        renamed: names of the request's `label_names` that the annotation holds.
    """

    format: LabelFormat
    origin: LabelsOrigin = "slide"
    painted: Counter[int] = field(default_factory=Counter)
    drawn: Counter[int] = field(default_factory=Counter)
    covered: Counter[int] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    on_tissue: int = 0
    mpp: float | None = None
    renamed: frozenset[str] = frozenset()

    def counted(
        self,
        strips: Iterator[UInt8],
        tissue: Tissue,
        height: int,
        progress: Callable[[int, int], None],
    ) -> Iterator[UInt8]:
        """Pass strips of a label map through, count their labels, and report the rows done."""
        top = 0
        for strip in strips:
            counts = np.bincount(strip.ravel())
            self.painted.update({i: int(n) for i, n in enumerate(counts.tolist()) if i and n})
            rows = (np.arange(top, top + len(strip)) + 0.5) * len(tissue) / height
            columns = (np.arange(strip.shape[1]) + 0.5) * tissue.shape[1] / strip.shape[1]
            there = tissue[rows.astype(int)][:, columns.astype(int)]
            self.on_tissue += int(((strip > 0) & there).sum())
            top += len(strip)
            progress(top, height)
            yield strip

    def record(self, classes: Classes) -> dict[str, Any]:
        """Return the counts by class name, for the result of the slide."""
        labelled, drawn = self.painted.total(), self.drawn.total()
        return {
            "format": self.format,
            "origin": self.origin,
            "painted": {classes.names[i]: n for i, n in sorted(self.painted.items())},
            "overpainted": round(self.covered.total() / drawn, 4) if drawn else 0.0,
            "overpainted_px": {classes.names[i]: n for i, n in sorted(self.covered.items()) if n},
            "on_tissue": round(self.on_tissue / labelled, 4) if labelled else None,
            "skipped": dict(sorted(self.skipped.items())),
            "mpp": self.mpp,
            "renamed": sorted(self.renamed),
        }


def draw_labels(
    file: Path,
    path: Path,
    slide: SlideGeometry,
    tissue: Tissue,
    source: SlideSource,
    request: IngestRequest,
    progress: Callable[[int, int], None] = lambda done, rows: None,
    mpp: float | None = None,
) -> dict[str, Any]:
    """Write the label map of a slide from its annotation.

    Args:
        file: the .tif file to write.
        path: file of the annotation.
        slide: the slide.
        tissue: its tissue mask.
        source: format and origin of the annotation.
        request: classes, their names in annotations, their order, and the map's resolution.
        progress: called after each strip with the rows that are done, and the rows of the map; it
            raises an error to end the drawing.
        mpp: another resolution of this map, µm per pixel, for a preview.

    Returns:
        What was painted and left out, as `Drawn.record` has it.

    Raises:
        InputError: the annotation is missing or malformed, does not lie on the slide and its
            tissue, holds no labelled area, has labels that belong to no class, or has outlines far
            finer than pixels.
    """
    classes = request.classes
    if classes is None:
        raise InputError(f"{source.slide} has an annotation, so the request must state classes")
    if not path.is_file():
        raise InputError(f"annotation {path} is not there")
    mpp = mpp or request.regions.mpp
    size = map_size(slide, mpp)
    kind, annotation = read_annotation(path, source.label_format, slide)
    drawn = Drawn(kind)
    strips = _strips(drawn, annotation, path, slide, tissue, source, request, classes, mpp)
    counted = drawn.counted(strips, tissue, size[1], progress)
    write_label_map(file, counted, *size, mpp)
    _check(drawn, path, request.labels_on_tissue, classes)
    return drawn.record(classes)


def map_size(slide: SlideGeometry, mpp: float) -> tuple[int, int]:
    """Return the width and height of a slide's label map at `mpp`, pixels."""
    return (
        max(1, round(slide.width * slide.mpp / mpp)),
        max(1, round(slide.height * slide.mpp_y / mpp)),
    )


def _strips(
    drawn: Drawn,
    annotation: Annotation | None,
    path: Path,
    slide: SlideGeometry,
    tissue: Tissue,
    source: SlideSource,
    request: IngestRequest,
    classes: Classes,
    mpp: float,
) -> Iterator[UInt8]:
    """Check an annotation, or the mask at `path`; return the strips of its label map."""
    origin = source.labels_origin or request.labels_origin
    if annotation is not None:
        annotation.outlines = settle(annotation.outlines)
        labelled = classify(annotation, classes, request.label_names, path)
        drawn.skipped, drawn.renamed = annotation.skipped, frozenset(annotation.renamed)
        if annotation.mpp and not 1 / OTHER_SCAN < annotation.mpp / slide.scan_mpp[0] < OTHER_SCAN:
            drawn.mpp = annotation.mpp
        # NDP.view states its unit, which its reader converts.
        unit = "px" if drawn.format == "ndpa" else request.labels_unit
        drawn.origin, labelled = place(path, labelled, slide, tissue, origin, unit)
        parts = in_order(labelled, classes, request.label_order)
        return paint(path, parts, slide, mpp, map_size(slide, mpp), drawn.drawn, drawn.covered)
    mask = open_mask(path)
    drawn.origin, frame = frame_of(mask, slide, origin, request.regions.mpp)
    table = lookup(mask, classes, request.label_names, PANDA_NAMES.get(drawn.format))
    drawn.renamed = table.renamed
    return resampled(mask, table, frame, slide, mpp, map_size(slide, mpp))


def _check(drawn: Drawn, path: Path, least: float, classes: Classes) -> None:
    """Raise `InputError` if nothing was painted, or too little of it lies on tissue."""
    labelled = drawn.painted.total()
    if not labelled and not classes.exhaustive:
        left_out = ", ".join(f"{count} {reason}" for reason, count in drawn.skipped.items())
        raise InputError(
            f"{path.name} labels not a pixel of its slide"
            + (f" (left out: {left_out})" if left_out else "")
            + f": annotate {' or '.join(classes.names[1:])}, or remove the file"
        )
    if labelled and drawn.on_tissue < least * labelled:
        raise InputError(
            f"{drawn.on_tissue / labelled:.1%} of the labelled area of {path.name} lies on "
            f"tissue, less than {least:.0%}: was it drawn on another slide, or at another level? "
            "If it is right, lower labels_on_tissue"
        )
