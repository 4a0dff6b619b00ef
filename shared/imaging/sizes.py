"""Sizes of one image at several scales."""

from __future__ import annotations

import math


def is_scaled(
    small: tuple[int, int], large: tuple[int, int], ratio: float = 1.0, slack: int = 1
) -> bool:
    """Say whether an image may be another, made smaller by one factor, or of its size.

    Args:
        small, large: width and height of both, pixels.
        ratio: factor along y / factor along x; 1: pixels keep their shape.
        slack: bound of the difference from the exact size, pixels of the small one; 1: it was
            rounded in any way.
    """
    fewest = [1.0, 1 / ratio]
    most = [math.inf]
    for few, many, scale in zip(small, large, (1.0, ratio), strict=True):
        fewest.append(many / (few + slack) / scale)
        if few > slack:
            most.append(many / (few - slack) / scale)
    return max(fewest) < min(most)
