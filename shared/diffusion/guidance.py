"""Classifier-free guidance with separate scales for the label map and the crops."""

from __future__ import annotations

from dataclasses import dataclass

from shared.contracts.sampling import GuidanceScale
from shared.diffusion.schedule import times

Branch = tuple[bool, bool]
"""The conditions of a prediction: (whether it gets the map, whether it gets the crops)."""


@dataclass(frozen=True)
class Guidance:
    """The weights of the predictions of a step, and the interval of times with guidance.

    The interval of `GuidanceScale` is the middle of the trajectory (Kynkäänniemi et al. 2024).
    Earlier, guidance exaggerates contrast and staining; later, it costs evaluations but changes
    nothing.

    Attributes:
        weights: branch → weight of its prediction. The first branch has the requested conditions.
        low, high: interval of times t with guidance; noise is at t = 1, the image at t = 0.
            Outside of it the first branch is used alone, with weight 1.
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
        """Weigh map and crops separately (like Brooks et al. 2023, eq. 3).

        v = v(∅,∅) + g_crops (v(∅,c) - v(∅,∅)) + g_map (v(m,c) - v(∅,c))

        In this order the guidance by the map leaves the staining to the crops, because both
        predictions of its difference, v(m,c) and v(∅,c), get the crops.

        Branches of weight 0 are left out: with both scales at 1, only v(m,c) remains.

        Args:
            guidance_map, guidance_crops: scales; 1 means no guidance.
            use_map, use_crops: False replaces m or c by ∅.
            low, high: see the class.
        """
        requested = (use_map, use_crops)
        weights = {requested: guidance_map}
        for branch, weight in (
            ((False, use_crops), guidance_crops - guidance_map),
            ((False, False), 1.0 - guidance_crops),
        ):
            weights[branch] = weights.get(branch, 0.0) + weight
        needed = {b: weight for b, weight in weights.items() if weight or b == requested}
        return cls(needed, low, high)

    @classmethod
    def from_scale(
        cls, scale: GuidanceScale, use_map: bool = True, use_crops: bool = True
    ) -> Guidance:
        """Return the guidance of a recipe's or a request's scales; see `of`."""
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
        """All branches, in the order of `weights_at`."""
        return list(self.weights)

    def weights_at(self, time: float) -> tuple[float, ...]:
        """Return the weights of the branches that are evaluated at time t.

        Outside of the interval this is (1.0,): only the first branch is evaluated.
        """
        return tuple(self.weights.values()) if self.low <= time <= self.high else (1.0,)

    def evaluations(self, steps: int) -> int:
        """Count the evaluations of the denoiser for one image in `steps` steps."""
        return sum(len(self.weights_at(time)) for time in times(steps))
