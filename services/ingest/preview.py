"""A look at a slide and its annotation before they are ingested."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from services.ingest.annotations.drawing import draw_labels, map_size
from services.ingest.annotations.outlines import SlideGeometry
from services.ingest.patches import check_size
from services.ingest.splits import Member, assign_splits, earlier_splits, members_of
from services.ingest.tile_tables import read_tiles
from services.ingest.tissue import Mask, find_tissue
from shared.contracts.base import Split
from shared.contracts.ingest import IngestRequest, SlideSource
from shared.errors import InputError
from shared.imaging.slide import Slide
from shared.imaging.stored_slides import local_source
from shared.storage import Store

SIDE = 1024
"""Greatest side of the thumbnail, and of the small label map that is drawn, pixels."""

MAX_PIXELS = 1 << 26
"""Largest number of pixels that are read for a thumbnail; it takes seconds."""


@dataclass
class SlidePreview:
    """What is known of a slide before it is ingested.

    Attributes:
        slide: the cohort's name of the slide.
        file: name of its main file.
        size: width and height of level 0, pixels.
        mpp: µm per level-0 pixel, along x and y; None if unknown.
        mpp_from: where `mpp` comes from: 'given', or 'the file'.
        tissue: share of the slide that is tissue; None: it was not looked at.
        stain: stain of the tissue; empty: it was not looked at.
        labels: name of the annotation's file; empty: none was found.
        shares: class → share of the slide's area that is labelled so.
        fault: why the slide would be skipped; empty: nothing was found.
    """

    slide: str
    file: str
    size: tuple[int, int] = (0, 0)
    mpp: tuple[float, float] | None = None
    mpp_from: str = ""
    tissue: float | None = None
    stain: str = ""
    labels: str = ""
    shares: dict[str, float] = field(default_factory=dict)
    fault: str = ""


def preview_slide(store: Store, request: IngestRequest, source: SlideSource) -> SlidePreview:
    """Open a slide, look at its tissue, and draw its annotation small.

    Tissue and annotation of a large slide without a pyramid are not looked at.
    """
    seen = SlidePreview(
        source.slide, PurePosixPath(source.source).name, labels=_file_name(source.labels)
    )
    try:
        with (
            local_source(store, source.source) as path,
            Slide.open(path, source.mpp) as slide,
        ):
            seen.size, seen.mpp = (slide.width, slide.height), (slide.mpp, slide.mpp_y)
            seen.mpp_from = "the file" if source.mpp is None else "given"
            slide.check_mpp(request.patches.mpp)
            check_size(slide, request.patches)
            if slide.thumbnail_pixels(SIDE) <= MAX_PIXELS:
                small, _ = slide.thumbnail(SIDE, request.max_damaged)
                mpp = slide.width * slide.mpp / small.shape[1]
                tissue, seen.stain = find_tissue(path.name, small, mpp, request.allow_other_stains)
                seen.tissue = float(tissue.mean())
                if source.labels is not None and request.classes is not None:
                    slide.check_mpp(request.regions.mpp)
                    seen.shares = _shares(store, request, source, slide, tissue)
    except (InputError, OSError) as error:
        seen.fault = str(error)
    return seen


def preview_splits(
    store: Store, request: IngestRequest, left_out: Iterable[str] = ()
) -> tuple[dict[str, Split], dict[str, Member]]:
    """Assign the splits as the ingest would, if regions of every slide showed the same classes.

    Args:
        store: holds the table of tiles, and the cohort as it was before.
        request: the request.
        left_out: slides that would be skipped.

    Returns:
        Slide → split, and slide → what is known of it.
    """
    tiles = read_tiles(store, request.tiles) if request.tiles else {}
    members = members_of(request, tiles, {})
    for name in left_out:
        members.pop(name, None)
    content = {item.slide: {"sha256": item.sha256} for item in request.slides}
    earlier = earlier_splits(store, request, tiles, content)
    return assign_splits(request.split, members, earlier), members


def _file_name(source: str | None) -> str:
    return PurePosixPath(source).name if source else ""


def _shares(
    store: Store, request: IngestRequest, source: SlideSource, slide: Slide, tissue: Mask
) -> dict[str, float]:
    coarse = max(slide.width * slide.mpp, slide.height * slide.mpp_y) / SIDE
    with (
        local_source(store, str(source.labels)) as path,
        tempfile.TemporaryDirectory(prefix="htd-preview-") as folder,
    ):
        geometry = SlideGeometry.of(slide)
        file = Path(folder) / "labels.tif"
        record = draw_labels(file, path, geometry, tissue, source, request, mpp=coarse)
        width, height = map_size(geometry, coarse)
    return {name: pixels / (width * height) for name, pixels in record["painted"].items()}
