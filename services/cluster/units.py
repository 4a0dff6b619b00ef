"""Which slides are assigned to clusters together: a large one alone, several small ones."""

from __future__ import annotations

from collections.abc import Mapping

from shared.storage import sha256

UNIT_PATCHES = 65_536
"""Number of patches of a unit; only a single slide has more."""

MEAN_SLIDES = 16
"""Mean number of slides of a unit, if they are so small that their patches do not end it."""


def assignment_units(patches: Mapping[str, int]) -> list[tuple[str, ...]]:
    """Cut the slides of a cohort into units, in the order of their names.

    Some names end a unit, whatever comes before. So a slide that is added to the cohort changes
    only the units up to the next such name, and the others are kept.

    Args:
        patches: slide → number of its patches.

    Returns:
        The slides of each unit.
    """
    units: list[tuple[str, ...]] = []
    unit: list[str] = []
    held = 0
    for slide in sorted(patches):
        if unit and held + patches[slide] > UNIT_PATCHES:
            units.append(tuple(unit))
            unit, held = [], 0
        unit.append(slide)
        held += patches[slide]
        if held >= UNIT_PATCHES or int(sha256(slide.encode())[:8], 16) % MEAN_SLIDES == 0:
            units.append(tuple(unit))
            unit, held = [], 0
    return [*units, tuple(unit)] if unit else units
