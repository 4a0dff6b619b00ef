"""The place of outlines on their slide: coordinates of the slide, or of its scanned area."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from shapely import get_parts, total_bounds
from shapely.affinity import affine_transform, translate
from shapely.geometry import box

from services.ingest.annotations.class_names import Labelled
from services.ingest.annotations.outlines import SlideGeometry
from services.ingest.annotations.strips import Strips
from shared.contracts.ingest import LabelsOrigin, LabelsUnit
from shared.errors import InputError
from shared.imaging.label_map import LABEL_TILE

Tissue = NDArray[np.bool_]
"""Tissue mask of the whole slide, bool (h, w), at any resolution."""

MAX_OUTSIDE = 0.1
"""Largest share of the labelled area that may lie beyond the slide's edges."""

CLEAR = 0.05
"""Smallest difference of shares on tissue that decides between two origins."""

MUCH, MUCH_MORE = 0.5, 0.25
"""Least share on tissue of outlines whose coordinates mean something else, and least difference
from their share as level-0 pixels, at which they may mean that."""


def place(
    path: Path,
    labelled: list[Labelled],
    slide: SlideGeometry,
    tissue: Tissue,
    origin: LabelsOrigin,
    unit: LabelsUnit = "px",
) -> tuple[LabelsOrigin, list[Labelled]]:
    """Find where the coordinates of outlines begin, and move the outlines to the slide's.

    Args:
        path: file of the annotation, for messages.
        labelled: the outlines.
        slide: the slide.
        tissue: its tissue mask.
        origin: 'slide', 'bounds', or 'auto': the one with more of the labelled area on tissue.
        unit: 'px', 'um', or 'auto': pixels, if no other meaning fits far better.

    Returns:
        The origin, 'slide' or 'bounds', and the outlines in level-0 pixels.

    Raises:
        InputError: the outlines do not lie on the slide, both origins fit alike, or the unit is
            'auto' and another meaning of the coordinates fits far better; or they are far finer
            than the pixels of the tissue mask.
    """
    if unit == "um":
        labelled = _from_um(labelled, slide)
    areas = [item for item in labelled if item.label] or labelled
    if not areas:
        return "slide", labelled
    if min(_extent(areas)) >= 0 and max(_extent(areas)) <= 1 < min(slide.width, slide.height):
        raise InputError(
            f"{path.name} has coordinates between 0 and 1, which are shares of the slide's sides: "
            f"export it in level-0 pixels (its slide has {slide.width}×{slide.height})"
        )
    shifts: dict[LabelsOrigin, tuple[int, int]] = {"slide": (0, 0)}
    if slide.bounds is not None and slide.bounds[:2] != (0, 0):
        shifts["bounds"] = slide.bounds[:2]
    if origin == "bounds" and "bounds" not in shifts:
        shifts["bounds"] = (0, 0)
    if origin != "auto":
        shifts = {origin: shifts[origin]}
    inside = {name: _share_inside(areas, slide, shift) for name, shift in shifts.items()}
    fitting = [name for name in shifts if inside[name] >= 1 - MAX_OUTSIDE]
    if not fitting:
        other = _other_reading(path, areas, slide, shifts, tissue) if unit == "auto" else None
        raise _outside(path, areas, slide, max(inside.values()), other)
    best = fitting[0]
    if len(fitting) > 1:
        shares = {
            name: _share_on_tissue(path, areas, slide, shifts[name], tissue) for name in fitting
        }
        best = max(fitting, key=lambda name: shares[name])
        if abs(shares["slide"] - shares["bounds"]) < CLEAR:
            raise InputError(
                f"{path.name} may count from the slide's corner or from that of its scanned area, "
                f"at {shifts['bounds']}: {shares['slide']:.0%} and {shares['bounds']:.0%} of the "
                "labelled area would lie on tissue. Say which with labels_origin: 'slide' or "
                "'bounds' (QuPath crops to the scanned area)"
            )
    share = _share_on_tissue(path, areas, slide, shifts[best], tissue) if unit == "auto" else 1.0
    if share <= 1 - MUCH_MORE:
        other = _other_reading(path, areas, slide, shifts, tissue)
        if other and other.share >= share + MUCH_MORE:
            raise InputError(
                f"{share:.0%} of the labelled area of {path.name} lies on tissue if its "
                f"coordinates are x and y in level-0 pixels. {other}, or set labels_unit to px if "
                "they are right"
            )
    x, y = shifts[best]
    if (x, y) == (0, 0):
        return best, labelled
    return best, [replace(item, area=translate(item.area, x, y)) for item in labelled]


def _from_um(labelled: Sequence[Labelled], slide: SlideGeometry) -> list[Labelled]:
    """Scale outlines in µm to level-0 pixels."""
    return _moved(labelled, (1 / slide.mpp, 0, 0, 1 / slide.mpp_y, 0, 0))


def _moved(labelled: Sequence[Labelled], matrix: Sequence[float]) -> list[Labelled]:
    return [replace(item, area=affine_transform(item.area, matrix)) for item in labelled]


class _Reading(NamedTuple):
    """Another meaning of coordinates, what to do if it is right, and its share on tissue."""

    meaning: str
    remedy: str
    share: float

    def __str__(self) -> str:
        return f"If they are {self.meaning}, {self.share:.0%} of it does: {self.remedy}"


def _other_reading(
    path: Path,
    areas: Sequence[Labelled],
    slide: SlideGeometry,
    shifts: Mapping[LabelsOrigin, tuple[int, int]],
    tissue: Tissue,
) -> _Reading | None:
    """Return the meaning of coordinates that brings most of the labelled area onto tissue.

    They are read as µm, as pixels of a smaller level, and as y and x. None: no meaning brings
    much of it there.
    """
    export = "export level-0 pixels"
    readings = [("y and x", export, (0.0, 1.0, 1.0, 0.0, 0, 0))]
    readings += [
        (f"pixels of level {level}", export, (factor, 0, 0, factor, 0, 0))
        for level, factor in enumerate(slide.downsamples)
        if factor > 1
    ]
    if slide.mpp != 1:
        um = (1 / slide.mpp, 0.0, 0.0, 1 / slide.mpp_y, 0, 0)
        readings.append(("µm", "set labels_unit to um", um))
    found = []
    for meaning, remedy, matrix in readings:
        moved = _moved(areas, matrix)
        fitting = [s for s in shifts.values() if _share_inside(moved, slide, s) >= 1 - MAX_OUTSIDE]
        shares = [_share_on_tissue(path, moved, slide, shift, tissue) for shift in fitting]
        found.append(_Reading(meaning, remedy, max(shares, default=0.0)))
    best = max(found, key=lambda reading: reading.share)
    return best if best.share >= MUCH else None


def _share_inside(areas: Sequence[Labelled], slide: SlideGeometry, shift: tuple[int, int]) -> float:
    frame = box(-shift[0], -shift[1], slide.width - shift[0], slide.height - shift[1])
    inside = sum(item.area.intersection(frame).area for item in areas)
    return float(inside / sum(item.area.area for item in areas))


def _share_on_tissue(
    path: Path,
    areas: Sequence[Labelled],
    slide: SlideGeometry,
    shift: tuple[int, int],
    tissue: Tissue,
) -> float:
    sx, sy = tissue.shape[1] / slide.width, tissue.shape[0] / slide.height
    matrix = (sx, 0, 0, sy, shift[0] * sx, shift[1] * sy)
    height, width = tissue.shape
    parts = get_parts([affine_transform(item.area, matrix) for item in areas]).tolist()
    strips = Strips(path, parts, (width, height))
    labelled = on_tissue = 0
    for top in range(0, height, LABEL_TILE):
        rows = min(LABEL_TILE, height - top)
        shapes = [(area, 1) for _, area in strips.near(top, rows)]
        covered = strips.draw(shapes, top, rows, all_touched=True) > 0
        labelled += int(covered.sum())
        on_tissue += int((covered & tissue[top : top + rows]).sum())
    return on_tissue / labelled if labelled else 0.0


def _outside(
    path: Path,
    areas: Sequence[Labelled],
    slide: SlideGeometry,
    share: float,
    other: _Reading | None,
) -> InputError:
    left, top, right, bottom = _extent(areas)
    place = f"x {left:.6g} to {right:.6g}, y {top:.6g} to {bottom:.6g}"
    return InputError(
        f"{share:.0%} of the labelled area of {path.name} ({place}) lies on its slide of "
        f"{slide.width}×{slide.height} px; was it drawn on another slide, at another level, or in "
        f"other units? {f'{other}' if other else 'Export it in level-0 pixels'}"
    )


def _extent(areas: Sequence[Labelled]) -> list[float]:
    """Return the least x and y, and the greatest x and y."""
    return [float(side) for side in total_bounds([item.area for item in areas])]
