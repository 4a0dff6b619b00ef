"""Computes the SVG shapes of curves, for the template `charts.html`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360, 180
LEFT, TOP, BOTTOM = 48, 10, 24
"""Margins of a chart, in SVG units; so are `WIDTH` and `HEIGHT`."""

MAX_POINTS = 360
"""Number of points of a curve, above which points are left out."""

SMOOTHING = 0.9
"""Weight of the previous mean in the smoothed curve."""

EXACT = frozenset({"learning_rate"})
"""Metrics without noise, which are not smoothed."""


@dataclass(frozen=True)
class Curve:
    """The curve of one metric over the steps of a training, as SVG shapes.

    Attributes:
        title: title of the metric.
        last: text of its last smoothed value.
        points, smooth: the attribute `points` of the SVG polylines of measured and smoothed
            values.
        rows, columns: (coordinate, text) of each tick on the value axis and on the step axis.
        width, height: size of the chart, SVG units.
        left: left margin of the chart, SVG units.
    """

    title: str
    last: str
    points: str
    smooth: str
    rows: tuple[tuple[float, str], ...]
    columns: tuple[tuple[float, str], ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT


def curve(name: str, steps: Sequence[float], values: Sequence[float]) -> Curve:
    """Draw one metric over steps.

    The value axis ignores the highest and the lowest 1 % of values; their points are drawn at its
    ends.

    Args:
        name: name of the metric.
        steps: steps of the values, in order; at least one.
        values: value at each step, finite.
    """
    smoothed = list(values) if name in EXACT else _smooth(values)
    ranked = sorted(values)
    edge = len(ranked) // 100
    low, high = ranked[edge], ranked[-1 - edge]
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = steps[0], max(steps[-1], steps[0] + 1)

    def x(step: float) -> float:
        return LEFT + (step - first) / (last - first) * (WIDTH - LEFT - 8)

    def y(value: float) -> float:
        share = (min(max(value, low), high) - low) / ((high - low) or 1)
        return TOP + (1 - share) * (HEIGHT - TOP - BOTTOM)

    def line(heights: Sequence[float]) -> str:
        stride = max(1, math.ceil(len(heights) / MAX_POINTS))
        pairs = list(zip(steps, heights, strict=True))
        chosen = pairs[::stride] + ([pairs[-1]] if (len(pairs) - 1) % stride else [])
        return " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in chosen)

    return Curve(
        title=name.replace("_", " "),
        last=f"{smoothed[-1]:.4g}",
        points=line(values),
        smooth=line(smoothed),
        rows=tuple((round(y(tick), 1), f"{tick:g}") for tick in ticks),
        columns=tuple((round(x(tick), 1), f"{tick:,.0f}") for tick in _ticks(first, last)),
    )


def curves(rows: Sequence[dict[str, float]]) -> list[Curve]:
    """Draw a curve for every metric of a training run.

    Args:
        rows: dicts with `step` and the metrics of that step; values that are not finite are left
            out.
    """
    names = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
    drawn = []
    for name in names:
        pairs = sorted(
            (row["step"], row[name]) for row in rows if name in row and math.isfinite(row[name])
        )
        if pairs:
            steps, values = zip(*pairs, strict=True)
            drawn.append(curve(name, steps, values))
    return drawn


def _smooth(values: Sequence[float]) -> list[float]:
    """Return the exponential moving mean, corrected for the bias of its start at zero."""
    total = weight = 0.0
    smoothed = []
    for value in values:
        total = SMOOTHING * total + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + 1 - SMOOTHING
        smoothed.append(total / weight)
    return smoothed


def _ticks(low: float, high: float) -> list[float]:
    """Return about four round numbers between `low` and `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= span / 4)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first) + 1)]
