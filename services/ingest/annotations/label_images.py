"""Masks of slides: where they lie, and their strips of a label map."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from services.ingest.annotations.outlines import SlideGeometry
from shared.arrays import Int64, UInt8
from shared.contracts.annotations import LabelFormat
from shared.contracts.ingest import LabelsOrigin
from shared.errors import InputError
from shared.imaging.label_map import LABEL_TILE
from shared.imaging.mask_values import Lookup
from shared.imaging.masks import Mask
from shared.imaging.sizes import is_scaled

PANDA_NAMES: dict[LabelFormat, dict[int, str]] = {
    "panda-radboud": {
        1: "stroma", 2: "benign", 3: "gleason 3", 4: "gleason 4", 5: "gleason 5",
    },
    "panda-karolinska": {1: "benign", 2: "cancer"},
}  # fmt: skip
"""Format → pixel value → name of the tissue, in the masks of the PANDA challenge."""

COARSEST = 32
"""Largest number of level-0 pixels per pixel of a mask, along each side."""

USUAL_MPP = (0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 8.0, 10.0, 16.0)
"""µm per pixel that masks are made at, whatever the slide has."""

OBLONG = 1.1
"""Longer / shorter side from which on a mask of the slide's shape is not one that was cropped."""


@dataclass(frozen=True)
class Frame:
    """The part of a slide that a mask covers: x, y, width and height, level-0 pixels."""

    x: int
    y: int
    width: int
    height: int


def frame_of(
    mask: Mask, slide: SlideGeometry, origin: LabelsOrigin, mpp: float
) -> tuple[LabelsOrigin, Frame]:
    """Find the part of the slide that a mask covers: the whole slide, or its scanned area.

    Args:
        mask: the mask.
        slide: the slide.
        origin: the part that it covers, if that is known.
        mpp: µm per pixel of the label maps of the cohort, which may be masks again.

    Raises:
        InputError: the mask has another shape, is larger or too coarse, states an EXIF
            orientation, or fits both.
    """
    frames: dict[LabelsOrigin, Frame] = {"slide": Frame(0, 0, slide.width, slide.height)}
    if slide.bounds is not None:
        frames["bounds"] = Frame(*slide.bounds)
    elif origin == "bounds":
        frames["bounds"] = frames["slide"]
    if origin != "auto":
        frames = {origin: frames[origin]}
    if mask.orientation != 1:
        raise InputError(
            f"mask {mask.path.name} states the EXIF orientation {mask.orientation}: save it "
            "upright, without this tag"
        )
    fitting = {name: frame for name, frame in frames.items() if _fits(mask, frame, slide, mpp)}
    size = (mask.width, mask.height)
    if not fitting and "slide" in frames and size in slide.level_sizes:
        # A level that is padded beyond the slide's edges, as those of Philips are.
        scale = slide.downsamples[slide.level_sizes.index(size)]
        fitting["slide"] = Frame(0, 0, round(size[0] * scale), round(size[1] * scale))
    if not fitting:
        frame = next(iter(frames.values()))
        raise InputError(
            f"mask {mask.path.name} is {mask.width}×{mask.height} px, which does not fit its "
            f"slide of {frame.width}×{frame.height} px: {_fault(mask, frame)}"
        )
    if len(set(fitting.values())) > 1:
        raise InputError(
            f"mask {mask.path.name} fits the whole slide, and its scanned area too: say which "
            "with labels_origin: 'slide' or 'bounds'"
        )
    return next(iter(fitting.items()))


def _fits(mask: Mask, frame: Frame, slide: SlideGeometry, mpp: float) -> bool:
    """Say whether a mask is a frame at one scale, but for rounding.

    Where pixels of the slide are not square, those of the mask may be like them, or square. Only
    a label map may be finer than its slide.
    """
    size, full = (mask.width, mask.height), (frame.width, frame.height)
    if size == (round(full[0] * slide.mpp / mpp), round(full[1] * slide.mpp_y / mpp)):
        return True
    coarseness = max(frame.width / mask.width, frame.height / mask.height)
    ratios = (1.0, slide.mpp / slide.mpp_y)
    return coarseness <= COARSEST and any(_credible(size, full, slide, ratio) for ratio in ratios)


def _credible(
    size: tuple[int, int], full: tuple[int, int], slide: SlideGeometry, ratio: float
) -> bool:
    """Say whether a mask is a frame divided by a factor that masks are made with.

    A cropped mask of a square slide has its shape too, and so has any that lost a few pixels.

    Args:
        size, full: width and height of the mask and of the frame, pixels.
        slide: the slide.
        ratio: factor along y / factor along x.
    """
    if not is_scaled(size, full, ratio):
        return False
    if full[0] >= 2 * size[0] and max(size) >= OBLONG * min(size):
        return True
    whole = [float(step) for step in range(1, COARSEST + 1)]
    steps = (*whole, *(step / ratio for step in whole), *slide.downsamples)
    return any(
        abs(size[0] - full[0] / step) < 1 and abs(size[1] - full[1] / step / ratio) < 1
        for step in (*steps, *(mpp / slide.mpp for mpp in USUAL_MPP))
    )


def _fault(mask: Mask, frame: Frame) -> str:
    """Tell why a mask does not fit a frame, and which size would."""
    x, y = frame.width / mask.width, frame.height / mask.height
    if max(x, y) > COARSEST:
        return f"a pixel of it covers {max(x, y):.0f} of the slide's, and {COARSEST} is the most"
    step = max(1, round((x + y) / 2))
    right = f"{round(frame.width / step)}×{round(frame.height / step)} px"
    if is_scaled((mask.width, mask.height), (frame.width, frame.height)):
        return (
            f"a pixel of it covers {x:.4g} of the slide's, which is no whole number, no level and "
            f"no usual resolution. Was it padded or cropped? With {step}×{step} it must have "
            f"{right}"
        )
    if is_scaled((mask.height, mask.width), (frame.width, frame.height)):
        return "is it transposed?"
    if max(x, y) < 1:
        return f"it is larger. Was it padded? Save it with {right}"
    return (
        f"it has another aspect ratio, because a pixel of it covers {x:.4g}×{y:.4g} of the "
        f"slide's. Was it padded or cropped? With {step}×{step} it must have {right}"
    )


def resampled(
    mask: Mask,
    lookup: Lookup,
    frame: Frame,
    slide: SlideGeometry,
    mpp: float,
    size: tuple[int, int],
) -> Iterator[UInt8]:
    """Yield strips of the label map, uint8 (rows, width), by nearest neighbour.

    Args:
        mask: the mask.
        lookup: class index of each of its values.
        frame: part of the slide that the mask covers; beyond it is 0.
        slide: the slide.
        mpp: µm per pixel of the label map.
        size: its width and height, pixels.
    """
    width, height = size
    columns = _sources(width, mpp / slide.mpp, frame.x, frame.width, mask.width)
    ys = _sources(height, mpp / slide.mpp_y, frame.y, frame.height, mask.height)
    inside = (columns >= 0) & (columns < mask.width)
    for top in range(0, height, LABEL_TILE):
        bottom = min(top + LABEL_TILE, height)
        rows = ys[top:bottom]
        there = np.flatnonzero((rows >= 0) & (rows < mask.height))
        strip = np.zeros((bottom - top, width), np.uint8)
        if len(there):
            first = int(rows[there[0]])
            part = mask.rows(first, int(rows[there[-1]]) + 1)
            picked = lookup(part[rows[there] - first][:, columns[inside]])
            strip[np.ix_(there, np.flatnonzero(inside))] = picked
        yield strip


def _sources(count: int, step: float, start: int, length: int, pixels: int) -> Int64:
    """Return the mask pixel at the centre of each of `count` pixels of `step` level-0 pixels."""
    centers = (np.arange(count) + 0.5) * step
    return np.floor((centers - start) * pixels / length).astype(np.int64)
