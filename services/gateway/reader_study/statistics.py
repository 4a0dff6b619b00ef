"""Statistics of a reader study.

In terms of signal detection, "synthetic" is the signal: a hit is a synthetic image that was called
synthetic, and a false alarm is a real image that was called synthetic.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from shared.arrays import Float64, Int64
from shared.contracts.reader_study import Interval

Bool = NDArray[np.bool_]

CONFIDENCE = 0.95
"""Coverage of all intervals."""

REPLICATES = 2000
"""Number of bootstrap replicates."""

UNKNOWN = Interval(value=None, low=None, high=None)
"""The interval of a figure without data."""

_NORMAL = NormalDist()


def wilson(successes: int, count: int) -> Interval:
    """Return the share `successes / count` with Wilson's 95 % interval; UNKNOWN if `count` is 0."""
    if not count:
        return UNKNOWN
    z = _NORMAL.inv_cdf((1 + CONFIDENCE) / 2)
    share = successes / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == count else middle + half
    return Interval(value=share, low=low, high=high)


def detection(
    hits: int, signals: int, false_alarms: int, noises: int
) -> tuple[float | None, float | None]:
    """Return d′ and the criterion c, with the log-linear correction (Hautus 1995).

    The correction adds half a response to each count and one to each total, so that z is finite
    for rates of 0 and 1.

    Args:
        hits: number of signals that were called signals.
        signals: number of signals.
        false_alarms: number of noises that were called signals.
        noises: number of noises.

    Returns:
        (d′, c), or (None, None) if there are no signals or no noises.
    """
    if not signals or not noises:
        return None, None
    hit = _NORMAL.inv_cdf((hits + 0.5) / (signals + 1))
    alarm = _NORMAL.inv_cdf((false_alarms + 0.5) / (noises + 1))
    return hit - alarm, -(hit + alarm) / 2


def cohen_kappa(first: Bool, second: Bool) -> float | None:
    """Return Cohen's kappa of two readers' answers, each bool (images,).

    Kappa is None if there are no images, or if both readers gave the same answer to all images.
    """
    if not len(first):
        return None
    observed = float(np.mean(first == second))
    p, q = float(first.mean()), float(second.mean())
    return _beyond_chance(observed, p * q + (1 - p) * (1 - q))


def fleiss_kappa(answers: Bool) -> float | None:
    """Return Fleiss' kappa of answers, bool (readers, images).

    Kappa is None if there are fewer than two readers, no images, or only one kind of answer.
    """
    readers, images = answers.shape
    if readers < 2 or not images:
        return None
    yes = answers.sum(0)
    agreeing = yes * (yes - 1) + (readers - yes) * (readers - yes - 1)
    observed = float(np.mean(agreeing / (readers * (readers - 1))))
    share = float(answers.mean())
    return _beyond_chance(observed, share**2 + (1 - share) ** 2)


def _beyond_chance(observed: float, expected: float) -> float | None:
    return None if math.isclose(expected, 1) else (observed - expected) / (1 - expected)


def bootstrap_means(values: Float64, strata: Int64) -> Float64:
    """Draw bootstrap replicates of the mean value in each stratum of images.

    Both readers and images are drawn, because the answers of one reader are correlated, and so
    are the answers to one image: intervals would be too narrow if every answer counted as
    independent. Images are drawn within their stratum, because the design of the study fixes
    the number of images per stratum. If there is only one reader, only images are drawn.

    Args:
        values: float64 (readers, images), NaN for a missing answer.
        strata: int64 (images,), number of each image's stratum, from 0.

    Returns:
        float64 (replicates, strata), NaN for a replicate without answers.
    """
    rng = np.random.default_rng(0)
    readers = len(values)
    known = ~np.isnan(values)
    drawn = (
        rng.multinomial(readers, np.full(readers, 1 / readers), REPLICATES).astype(float)
        if readers > 1
        else np.ones((REPLICATES, readers))
    )
    sums, counts = drawn @ np.where(known, values, 0.0), drawn @ known
    means = []
    for stratum in range(int(strata.max()) + 1):
        own = strata == stratum
        images = int(own.sum())
        weights = rng.multinomial(images, np.full(images, 1 / images), REPLICATES)
        total = (weights * counts[:, own]).sum(1)
        with np.errstate(invalid="ignore"):
            means.append((weights * sums[:, own]).sum(1) / total)
    return np.stack(means, axis=1)


def around(value: float, replicates: Float64) -> Interval:
    """Return an estimate with the percentile interval of its bootstrap replicates (replicates,)."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(replicates, [tail, 1 - tail])
    return Interval(value=value, low=float(low), high=float(high))
