"""What follows from the levels of a slide that OpenSlide does not read itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import openslide
from PIL import Image

from shared.imaging.sizes import is_scaled

ROUNDING = 2
"""Pixels by which a level may differ from the size that its scale gives it."""


class LeveledSlide(openslide.AbstractSlide):
    """A slide that `open_source` opens; a subclass states its levels and reads them."""

    @classmethod
    def detect_format(cls, filename: Any) -> str | None:
        """Return None: `open_source` chooses the reader."""
        return None

    @property
    def level_count(self) -> int:
        """Number of levels."""
        return len(self.level_dimensions)

    @property
    def associated_images(self) -> Mapping[str, Image.Image]:
        """None are read."""
        return {}

    def get_best_level_for_downsample(self, downsample: float) -> int:
        """Return the coarsest level that is not coarser than `downsample`.

        Levels that are another picture do not count.
        """
        fitting = [
            i
            for i, own in enumerate(self.level_downsamples)
            if own <= downsample and self._shows(i)
        ]
        return max(fitting, key=lambda i: self.level_downsamples[i], default=0)

    def _shows(self, level: int) -> bool:
        """Say whether a level may be the whole of level 0, by its shape.

        Programs store levels, labels and other pictures alike, as pages of a TIFF.
        """
        size, scale = self.level_dimensions[level], self.level_downsamples[level]
        padded = all(
            side * scale >= whole for side, whole in zip(size, self.dimensions, strict=True)
        )
        return padded or is_scaled(size, self.dimensions, slack=ROUNDING)
