"""Classifier-free guidance by map and crops apart: which branches there are, and their weights."""

from __future__ import annotations

from dataclasses import dataclass

from shared.contracts.sampling import GuidanceScale

Branch = tuple[bool, bool]
"""(map given, crops given)."""


@dataclass(frozen=True)
class Guidance:
    """The predictions that a step weighs, and when it does.

    Guided only in the middle of the way (Kynkäänniemi et al. 2024): early it exaggerates
    contrast and staining, late it costs evaluations and changes nothing.

    Attributes:
        weights: branch → weight of its prediction. The first branch is what was asked for.
        low, high: times t, of noise at 1 and image at 0, between which it guides; before and
            after, the first branch is taken as it is.
    """

    weights: dict[Branch, float]
    low: float = 0.0
    high: float = 1.0

    @classmethod
    def of(
        cls,
        guidance_map: float,
        guidance_crops: float,
        use_map: bool = True,
        use_crops: bool = True,
        low: float = 0.0,
        high: float = 1.0,
    ) -> Guidance:
        """Weigh map and crops apart (as Brooks et al. 2023, eq. 3).

        v = v(∅,∅) + g_crops (v(∅,c) - v(∅,∅)) + g_map (v(m,c) - v(∅,c))

        In this order the map's guidance leaves the staining to the crops: both of its
        predictions know them.

        Branches of no weight are left out: with both guidances at 1, only v(m,c) is there.

        Args:
            guidance_map, guidance_crops: 1 is none extra.
            use_map, use_crops: False replaces m or c by ∅.
            low, high: see the class.
        """
        asked = (use_map, use_crops)
        weights = {asked: guidance_map}
        for branch, weight in (
            ((False, use_crops), guidance_crops - guidance_map),
            ((False, False), 1.0 - guidance_crops),
        ):
            weights[branch] = weights.get(branch, 0.0) + weight
        kept = {branch: weight for branch, weight in weights.items() if weight or branch == asked}
        return cls(kept, low, high)

    @classmethod
    def from_scale(
        cls, scale: GuidanceScale, use_map: bool = True, use_crops: bool = True
    ) -> Guidance:
        """Weigh as a recipe or a request asks; see `of`."""
        return cls.of(
            scale.guidance_map,
            scale.guidance_crops,
            use_map,
            use_crops,
            scale.guidance_low,
            scale.guidance_high,
        )

    @property
    def branches(self) -> list[Branch]:
        """What the predictions are given, in the order of `at`."""
        return list(self.weights)

    def at(self, time: float) -> tuple[float, ...]:
        """Weights at time t of the first branches; those that follow are not asked."""
        return tuple(self.weights.values()) if self.low <= time <= self.high else (1.0,)

    def evaluations(self, steps: int) -> int:
        """Predictions that an image of so many steps takes."""
        return sum(len(self.at(1 - step / steps)) for step in range(steps))
