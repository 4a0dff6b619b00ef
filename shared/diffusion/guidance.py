"""Classifier-free guidance by map and crops apart: which branches there are, and their weights."""

from __future__ import annotations


def guidance_weights(
    guidance_map: float, guidance_crops: float, use_map: bool = True, use_crops: bool = True
) -> dict[tuple[bool, bool], float]:
    """Weigh map and crops apart by classifier-free guidance (as Brooks et al. 2023, eq. 3).

    v = v(∅,∅) + g_map (v(m,∅) - v(∅,∅)) + g_crops (v(m,c) - v(m,∅))

    Args:
        guidance_map, guidance_crops: 1 is none extra.
        use_map, use_crops: False replaces m or c by ∅.

    Returns:
        (map given, crops given) → weight of that prediction; those of no weight are left
        out: with both guidances at 1, only v(m,c) is there.
    """
    weights: dict[tuple[bool, bool], float] = {}
    for branch, weight in (
        ((use_map, use_crops), guidance_crops),
        ((use_map, False), guidance_map - guidance_crops),
        ((False, False), 1.0 - guidance_map),
    ):
        weights[branch] = weights.get(branch, 0.0) + weight
    return {branch: weight for branch, weight in weights.items() if weight}
