"""Choosing the label maps of a dataset, and the regions that give its crops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shared.arrays import Float64, Int64
from shared.contracts.base import Classes
from shared.contracts.models import ModelRecord
from shared.contracts.synthesize import DatasetRequest, wanted_shares
from shared.datasets.region_bank import RegionBank
from shared.errors import InputError
from shared.seeds import image_seed

FULL_CROP_SHARE = 0.15
"""Share of a region that fills a large crop, (200 / 512)²."""

PENALTY_WEIGHT = 1e-5
"""Weight of the penalty that keeps the multipliers finite where proportions cannot be reached."""

MAX_NEWTON_STEPS = 200
MAX_SWAPS = 400
REACH_TOLERANCE = 0.05
"""Distance to a wanted share above which the maps do not reach it."""

SHARE_TOLERANCE = 0.002
"""Distance to the wanted shares at which the swapping of regions stops."""


def _gaps(shares: Float64, wanted: Mapping[int, float], first: int) -> tuple[Float64, Float64]:
    """Return the regions' labelled shares (n,) and gaps to the wanted shares (n, labels)."""
    labels = sorted(wanted)
    tissue = np.maximum(shares[:, first:].sum(1), 1e-6)
    return tissue, shares[:, labels] / tissue[:, None] - [wanted[label] for label in labels]


def balance(shares: Float64, wanted: Mapping[int, float], first: int = 1) -> Float64:
    """Weigh regions so that their expected class shares are the wanted ones.

    Let q_i be the share of all labelled pixels that comes from region i. Among the q that reach the
    wanted shares, the one of maximum entropy is taken (Jaynes 1957): q_i ∝ exp(-λ·g_i), where g_i
    are the gaps between a region's shares and the wanted ones, and λ minimizes the convex dual
    (Newton's method). If no q reaches the wanted shares, the nearest is taken. The weight of a
    region is q_i divided by the labelled share of its own pixels.

    Args:
        shares: (n, classes) share of each class in each region, background first.
        wanted: label → wanted share of the labelled pixels.
        first: smallest label of tissue; pixels of lower labels are unlabelled.

    Returns:
        Weights (n,), positive, with sum 1.
    """
    tissue, gaps = _gaps(shares, wanted, first)
    weights = _spread(gaps) / tissue
    normalized: Float64 = weights / weights.sum()
    return normalized


def _spread(gaps: Float64) -> Float64:
    """Return the maximum-entropy weights (n,), with sum 1, that bring the mean gap to zero.

    `gaps` (n, labels) are the differences between each region's class shares and the wanted ones.
    If no weights bring their weighted mean to zero, the weights that come nearest are returned.
    """
    multipliers = np.zeros(gaps.shape[1])
    value, weights = _dual(gaps, multipliers)
    for _ in range(MAX_NEWTON_STEPS):
        mean = weights @ gaps
        slope = PENALTY_WEIGHT * multipliers - mean
        curvature = (gaps * weights[:, None]).T @ gaps - np.outer(mean, mean)
        step = np.linalg.solve(curvature + PENALTY_WEIGHT * np.eye(len(mean)), -slope)
        size, gain = 1.0, float(-slope @ step)
        if gain < 1e-12:
            break
        while (after := _dual(gaps, multipliers + size * step))[0] > value - 0.1 * size * gain:
            size /= 2
            if size < 1e-6:  # only rounding errors are left
                return weights
        multipliers = multipliers + size * step
        value, weights = after
    return weights


def _dual(gaps: Float64, multipliers: Float64) -> tuple[float, Float64]:
    """Return the value of the convex dual at `multipliers`, and the weights (n,) there."""
    logits = -gaps @ multipliers
    highest = logits.max()
    raised = np.exp(logits - highest)
    total = raised.sum()
    penalty = PENALTY_WEIGHT / 2 * multipliers @ multipliers
    return float(highest + np.log(total) + penalty), raised / total


def choose_maps(
    shares: Float64,
    count: int,
    wanted: Mapping[int, float],
    rng: np.random.Generator,
    first: int = 1,
) -> Int64:
    """Choose the regions whose label maps a dataset uses.

    Without wanted shares, all regions are taken equally often, give or take one. With them,
    regions are drawn with the weights of `balance`, and then some are swapped for others to
    come nearer to the wanted shares.

    Args:
        shares: (n, classes) share of each class in each region, background first.
        count: number of regions to choose; a region may be chosen several times.
        wanted: label → wanted share of the labelled pixels; empty: no preference.
        rng: generator of the draws.
        first: smallest label of tissue.

    Returns:
        int64 (count,) region numbers, in random order.
    """
    if not wanted:
        rounds = [rng.permutation(len(shares)) for _ in range(-(-count // len(shares)))]
        return np.concatenate(rounds)[:count]
    order = rng.permutation(len(shares))
    steps = np.cumsum(balance(shares, wanted, first)[order]) * count
    drawn = np.searchsorted(steps, np.arange(count) + rng.random(), side="right")
    chosen: Int64 = rng.permutation(order[np.minimum(drawn, len(shares) - 1)])
    return _swap(*_gaps(shares, wanted, first), chosen, rng)


def _swap(tissue: Float64, gaps: Float64, chosen: Int64, rng: np.random.Generator) -> Int64:
    """Swap chosen regions for others that bring all of them nearer to the wanted shares."""
    chosen = chosen.copy()
    sums = np.column_stack([gaps * tissue[:, None], tissue])

    def error(total: Float64) -> Float64:
        squares: Float64 = np.square(total[..., :-1] / total[..., -1:]).sum(-1)
        return squares

    total = sums[chosen].sum(0)
    for _ in range(MAX_SWAPS):
        if error(total) < SHARE_TOLERANCE**2:
            break
        places = rng.choice(len(chosen), min(len(chosen), 64), replace=False)
        others = rng.choice(len(sums), min(len(sums), 1024), replace=False)
        after = total - sums[chosen[places]][:, None] + sums[others][None]
        errors = error(after)
        place, other = np.unravel_index(errors.argmin(), errors.shape)
        if errors[place, other] < error(total):
            total = after[place, other]
            chosen[places[place]] = others[other]
    return chosen


def check_reach(shares: Float64, wanted: Mapping[int, float], classes: Classes, whose: str) -> None:
    """Check that some choice of maps reaches the wanted shares.

    Args:
        shares: (n, classes) share of each class in each region.
        wanted: label → wanted share of the labelled pixels.
        classes: classes of the model.
        whose: description of the map source, for the message.

    Raises:
        InputError: the nearest choice misses a wanted share by more than `REACH_TOLERANCE`.
    """
    if not wanted:
        return
    gaps = _gaps(shares, wanted, classes.first)[1]
    nearest = dict(zip(sorted(wanted), _spread(gaps) @ gaps, strict=True))
    if max(map(abs, nearest.values())) > REACH_TOLERANCE:
        asked, reached = (
            ", ".join(f"{classes.names[label]}={value:.2g}" for label, value in values.items())
            for values in (wanted, {label: wanted[label] + nearest[label] for label in wanted})
        )
        raise InputError(
            f"no choice of maps reaches the proportions {asked}: the nearest with the maps of "
            f"{whose} is {reached}. Ask for that, or take other maps (maps.regions, maps.splits)"
        )


SlideRule = Literal["same", "other", "any"]


def donors(
    shares: Float64, slides: NDArray[np.str_], label: int, slide: str, rule: SlideRule
) -> Int64:
    """Return the regions that may give a crop of a class to a map of `slide`.

    These are the regions with enough of the class to fill a large crop. If there are none,
    they are all regions with any of the class.

    Args:
        shares: (n, classes) share of each class in each region.
        slides: slide of each region (n,).
        label: the class.
        slide: the slide of the map.
        rule: whether donors must be on this slide, on others, or on any.

    Returns:
        int64 region numbers.
    """
    here = slides == slide
    allowed = {"same": here, "other": ~here, "any": np.ones(len(slides), bool)}[rule]
    share = np.where(allowed, shares[:, label], 0.0)
    enough = np.flatnonzero(share >= FULL_CROP_SHARE)
    return enough if len(enough) else np.flatnonzero(share > 0)


def check_donors(
    shares: Float64, slides: NDArray[np.str_], pairs: set[tuple[str, int]], rule: SlideRule,
    classes: Classes, whose: str,
) -> None:  # fmt: skip
    """Check that there is a donor for each class on the maps of each slide.

    Args:
        shares: (n, classes) share of each class in each region.
        slides: slide of each region (n,).
        pairs: (slide, class) for each class on the maps of each slide.
        rule: rule of `donors`.
        classes: classes of the model.
        whose: description of the crop source, for the message.

    Raises:
        InputError: a pair has no donor.
    """
    for slide, label in sorted(pairs):
        if len(donors(shares, slides, label, slide, rule)):
            continue
        where = {
            "same": f"on slide {slide!r}",
            "other": f"on any slide but {slide!r}",
            "any": "on any slide",
        }[rule]
        raise InputError(
            f"no crop of {classes.names[label]!r} for the maps of {slide!r}: {whose} has none "
            f"{where}. Take another crop source (splits, regions), or crops.slide = 'any'"
        )


def plan_maps(
    request: DatasetRequest, model: ModelRecord, maps: RegionBank, crops: RegionBank
) -> Int64:
    """Choose the map of every image of a dataset; the same request gives the same choice.

    Returns:
        int64 (images,) region numbers in `maps`.

    Raises:
        InputError: the proportions name a class that the model lacks, no choice of maps reaches
            them, or no region can give a crop of a class of a chosen map.
    """
    first = model.classes.first
    wanted = wanted_shares(request.proportions, model.classes)
    whose = f"region set {maps.name!r} ({', '.join(request.maps.splits)})"
    check_reach(maps.shares, wanted, model.classes, whose)
    rng = np.random.default_rng(image_seed(request.seed, -1))
    chosen = choose_maps(maps.shares, request.images, wanted, rng, first)
    pairs = {
        (str(maps.slides[number]), int(label))
        for number in np.unique(chosen)
        for label in np.flatnonzero(maps.shares[number])
        if label >= first
    }
    source = f"region set {crops.name!r} ({', '.join(request.crops.splits)})"
    check_donors(crops.shares, crops.slides, pairs, request.crops.slide, model.classes, source)
    return chosen
