"""A look at a slide and its annotation before they are ingested."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from services.ingest.annotations.drawing import draw_labels, map_size
from services.ingest.annotations.outlines import SlideGeometry
from services.ingest.tissue import tissue_mask
from shared.contracts.ingest import IngestRequest, SlideSource
from shared.errors import InputError
from shared.imaging.slide import Slide
from shared.imaging.stored_slides import local_source
from shared.storage import Store

SIDE = 1024
"""Greatest side of the small label map that is drawn to see which classes there are, pixels."""


@dataclass
class SlidePreview:
    """What is known of a slide before it is ingested.

    Attributes:
        slide: the cohort's name of the slide.
        file: name of its main file.
        size: width and height of level 0, pixels.
        mpp: µm per level-0 pixel; None if unknown.
        mpp_from: where `mpp` comes from: 'given', or 'the file'.
        labels: name of the annotation's file; empty: none was found.
        shares: class → share of the slide's area that is labelled so.
        fault: why the slide would be skipped; empty: nothing was found.
    """

    slide: str
    file: str
    size: tuple[int, int] = (0, 0)
    mpp: float | None = None
    mpp_from: str = ""
    labels: str = ""
    shares: dict[str, float] = field(default_factory=dict)
    fault: str = ""


def preview_slide(store: Store, request: IngestRequest, source: SlideSource) -> SlidePreview:
    """Open a slide, and draw its annotation small."""
    seen = SlidePreview(
        source.slide, PurePosixPath(source.source).name, labels=_file_name(source.labels)
    )
    try:
        with (
            local_source(store, source.source) as path,
            Slide.open(path, source.mpp) as slide,
        ):
            seen.size, seen.mpp = (slide.width, slide.height), slide.mpp
            seen.mpp_from = "the file" if source.mpp is None else "given"
            slide.check_mpp(request.patches.mpp)
            if source.labels is not None and request.classes is not None:
                slide.check_mpp(request.regions.mpp)
                seen.shares = _shares(store, request, source, slide)
    except (InputError, OSError) as error:
        seen.fault = str(error)
    return seen


def _file_name(source: str | None) -> str:
    return PurePosixPath(source).name if source else ""


def _shares(
    store: Store, request: IngestRequest, source: SlideSource, slide: Slide
) -> dict[str, float]:
    small, _ = slide.thumbnail(SIDE)
    tissue = tissue_mask(small, slide.width * slide.mpp / small.shape[1])
    coarse = max(slide.width * slide.mpp, slide.height * slide.mpp_y) / SIDE
    rule = request.regions.model_copy(update={"mpp": coarse})
    drawn = request.model_copy(update={"regions": rule})
    with (
        local_source(store, str(source.labels)) as path,
        tempfile.TemporaryDirectory(prefix="htd-preview-") as folder,
    ):
        geometry = SlideGeometry.of(slide)
        record = draw_labels(Path(folder) / "labels.tif", path, geometry, tissue, source, drawn)
        width, height = map_size(geometry, coarse)
    return {name: pixels / (width * height) for name, pixels in record["painted"].items()}
