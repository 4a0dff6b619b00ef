"""Whether imported patches lie where the slide has its own."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np

from shared.arrays import Float64, Int64
from shared.errors import InputError

MIN_COVERED = 0.5
"""Smallest share of a slide's own patches that imported ones must cover."""

MAX_ELSEWHERE = 0.75
"""Largest share of imported patches that may lie where the slide has none of its own."""

BETTER = 0.05
"""How much more of both may be in common at other places before that is a doubt: tools find tissue
in different ways, but not one step aside."""

Cells = set[tuple[int, int]]
"""Places of patches on the cohort's grid: column and row."""


class Places(NamedTuple):
    """How imported patches fit those of the slide.

    Attributes:
        covered: share of the slide's own patches that have an imported one within half a step.
        elsewhere: share of the imported patches that lie where the slide has none.
        doubt: what else would fit better; None: nothing.
    """

    covered: float
    elsewhere: float
    doubt: str | None


def compare_places(where: str, coords: Int64, own: Int64, step: Float64) -> Places:
    """Compare places with those of the slide's own patches, on the cohort's grid.

    Args:
        where: name of the file, for messages.
        coords, own: int64 (n, 2), level-0 corners of the imported and of the slide's patches.
        step: distance of neighbours in x and y, level-0 pixels.

    Raises:
        InputError: too few of the slide's patches are covered, or too many lie elsewhere.
    """
    theirs, ours = _cells(coords, step), _cells(own, step)
    if not ours and not theirs:
        return Places(1.0, 0.0, None)
    covered = len(ours & theirs) / len(ours) if ours else 1.0
    if covered < MIN_COVERED:
        raise InputError(
            f"{where} has {len(coords)} patches, which cover {covered:.0%} of the slide's "
            f"{len(own)} patches, fewer than {MIN_COVERED:.0%}: was it made from another slide, or "
            "are its coordinates not of level 0?"
        )
    elsewhere = 1 - len(ours & theirs) / len(theirs)
    if elsewhere > MAX_ELSEWHERE:
        raise InputError(
            f"{where} has {len(coords)} patches, {elsewhere:.0%} of which lie where the slide has "
            f"none of its {len(own)} patches: leave out patches of glass"
        )
    return Places(covered, elsewhere, _doubt(theirs, _cells(coords[:, ::-1], step), ours))


def _cells(places: Int64, step: Float64) -> Cells:
    return {(x, y) for x, y in np.round(places / step).astype(np.int64).tolist()}


def _doubt(theirs: Cells, swapped: Cells, ours: Cells) -> str | None:
    """Say what would make the patches fit those of the slide better; None: nothing."""

    def common(cells: Cells) -> float:
        return len(cells & ours) / max(1, len(cells | ours))

    others = {"with x and y swapped": swapped} | {
        f"{right:+d} patches in x and {down:+d} in y": {(x + right, y + down) for x, y in theirs}
        for right, down in product((-1, 0, 1), repeat=2)
        if right or down
    }
    best = max(others, key=lambda name: common(others[name]))
    if common(others[best]) <= common(theirs) + BETTER:
        return None
    return (
        f"its patches would fit better {best}: {common(others[best]):.0%} in common with the "
        f"slide's, now {common(theirs):.0%}"
    )
