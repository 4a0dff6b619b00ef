"""A look at a slide and its annotation before they are ingested."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np

from services.ingest.annotations import format_of, label_strips
from shared.contracts.base import Classes
from shared.contracts.ingest import IngestRequest, SlideSource
from shared.errors import InputError
from shared.imaging.slide import Slide, local_source
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
    """Open a slide and draw its annotation small; tissue is not looked for."""
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
                seen.shares = _shares(store, request, request.classes, source, slide)
    except (InputError, OSError) as error:
        seen.fault = str(error)
    return seen


def _file_name(source: str | None) -> str:
    return PurePosixPath(source).name if source else ""


def _shares(
    store: Store, request: IngestRequest, classes: Classes, source: SlideSource, slide: Slide
) -> dict[str, float]:
    factor = max(1.0, max(slide.width, slide.height) / SIDE)
    size = (max(1, round(slide.width / factor)), max(1, round(slide.height / factor)))
    counts = np.zeros(256, np.int64)
    with local_source(store, str(source.labels)) as path:
        kind = source.label_format or format_of(path)
        whole = (slide.width, slide.height)
        for strip in label_strips(path, kind, classes, request.label_names, whole, size):
            counts += np.bincount(strip.ravel(), minlength=256)
    shares = counts / max(1, counts.sum())
    return {item.name: float(shares[item.index]) for item in classes.items if shares[item.index]}
