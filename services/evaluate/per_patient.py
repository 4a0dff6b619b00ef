"""Distances of images to the other real images of the patient whose crops they were made from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from services.evaluate.data import MAP_AND_CROPS
from services.evaluate.fidelity import FeatureSet
from shared.arrays import Float32, Float64, Int64
from shared.contracts.evaluate import PerPatient

MIN_TILES = 6
"""Smallest number of real test images of a patient that images are compared with."""

HALVINGS = 20
"""Number of times that a patient's images are divided at random, for the row 'same'."""

UNKNOWN = ""
"""Stands for the patient of images that come from several patients, or from an unknown one."""

DRAWS = 200
"""Number of bootstrap draws for an interval."""


def image_kernels(one: Float32, other: Float32) -> Float64:
    """Compare images by the kernel (x · y / dim + 1)³ of their features, (n, m).

    Args:
        one, other: features (n, views, dim) and (m, views, dim); the mean over all pairs of views
            counts.
    """
    (n, views, dim), (m, others) = one.shape, other.shape[:2]
    products = one.reshape(-1, dim).astype(np.float64) @ other.reshape(-1, dim).T
    kernels = ((products / dim + 1) ** 3).reshape(n, views, m, others)
    means: Float64 = kernels.mean((1, 3))
    return means


def _within(kernels: Float64) -> float:
    """Return the mean kernel of two different images of one set."""
    n = len(kernels)
    return float((kernels.sum() - np.trace(kernels)) / (n * (n - 1)))


def kernel_distance(
    one: Float64, other: Float64, between: Float64, apart: NDArray[np.bool_]
) -> float:
    """Compute the unbiased kernel distance of two sets of images (Bińkowski et al. 2018).

    It is 0 in the mean for two samples of one distribution, however small, so it may be below 0.

    Args:
        one, other: kernels within either set, (n, n) and (m, m).
        between: kernels between the sets, (n, m).
        apart: bool (n, m); the pairs that count, at least one.
    """
    return _within(one) + _within(other) - 2 * float(between[apart].mean())


def per_patient(
    test: FeatureSet,
    rows: Mapping[str, FeatureSet],
    patients: Mapping[str, str],
    seed: int,
) -> PerPatient | None:
    """Compare images made from a patient's maps and crops with the patient's other real images.

    Patients with fewer than `MIN_TILES` real test images, or fewer than two images in a row, are
    left out. A synthetic image is not compared with the regions of its own map and crops.

    Args:
        test: features of real test images, with their regions.
        rows: row → features of synthetic images made from test slides, with their regions; the
            rows 'map' and 'both' are needed.
        patients: slide → patient.
        seed: seed of the divisions and of the interval.

    Returns:
        The means over patients; None if there are fewer than two such patients, or a row is
        missing.
    """
    if not {"map", MAP_AND_CROPS} <= rows.keys():
        return None
    real = image_kernels(test.values, test.values)
    owners = np.array([_owner(names, patients) for names in test.slides], np.str_)
    found: dict[str, list[float]] = {name: [] for name in ("other", "same", *rows)}
    kernels = {
        name: (
            image_kernels(row.values, row.values),
            image_kernels(row.values, test.values),
            _apart(row, test),
            np.array([_owner(names, patients) for names in row.slides], np.str_),
        )
        for name, row in rows.items()
    }
    names, counts = np.unique(owners, return_counts=True)
    measured = 0
    for patient in names[(counts >= MIN_TILES) & (names != UNKNOWN)].tolist():
        own = np.flatnonzero(owners == patient)
        chosen = {name: np.flatnonzero(part[3] == patient) for name, part in kernels.items()}
        if any(
            len(images) < 2 or not kernels[name][2][np.ix_(images, own)].any()
            for name, images in chosen.items()
        ):
            continue
        measured += 1
        tiles = real[np.ix_(own, own)]
        for name, images in chosen.items():
            inside, across, apart, _ = kernels[name]
            found[name].append(
                kernel_distance(
                    inside[np.ix_(images, images)],
                    tiles,
                    across[np.ix_(images, own)],
                    apart[np.ix_(images, own)],
                )
            )
        found["other"].append(_from_real(real, np.flatnonzero(owners != patient), own))
        rng = np.random.default_rng([seed, measured])
        found["same"].append(_halved(real, own, rng))
    if measured < 2:
        return None
    values = {name: np.array(distances) for name, distances in found.items()}
    return PerPatient(
        patients=measured,
        distance={name: float(own.mean()) for name, own in values.items()},
        spread={name: float(own.std(ddof=1)) for name, own in values.items()},
        gain=_gain(values["map"], values[MAP_AND_CROPS]),
        gain_interval=_interval(values["map"], values[MAP_AND_CROPS], seed),
        most=_gain(values["other"], values["same"]),
    )


def _owner(slides: tuple[str, ...], patients: Mapping[str, str]) -> str:
    """Return the one patient of some slides; `UNKNOWN` if they are of several."""
    owners = {patients.get(slide, UNKNOWN) for slide in slides}
    return owners.pop() if len(owners) == 1 else UNKNOWN


def _apart(row: FeatureSet, test: FeatureSet) -> NDArray[np.bool_]:
    """Say which images show none of the regions that the others come from, (n, m)."""
    if row.regions is None or test.regions is None:
        raise ValueError("the regions of the images must be known")
    column = {names[0]: number for number, names in enumerate(test.regions)}
    apart = np.ones((len(row), len(test)), bool)
    for number, names in enumerate(row.regions):
        apart[number, [column[name] for name in names if name in column]] = False
    return apart


def _from_real(real: Float64, one: Int64, other: Int64) -> float:
    between = real[np.ix_(one, other)]
    within, within_other = (real[np.ix_(rows, rows)] for rows in (one, other))
    return kernel_distance(within, within_other, between, np.ones_like(between, bool))


def _halved(real: Float64, own: Int64, rng: np.random.Generator) -> float:
    """Return the mean distance of two random halves of a patient's images."""
    distances = []
    for _ in range(HALVINGS):
        mixed = rng.permutation(own)
        distances.append(_from_real(real, mixed[: len(own) // 2], mixed[len(own) // 2 :]))
    return float(np.mean(distances))


def _gain(before: Float64, after: Float64) -> float:
    return float(1 - after.mean() / before.mean())


def _interval(before: Float64, after: Float64, seed: int) -> tuple[float, float]:
    """Return the 90 % interval of the gain over resampled patients."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(before), size=(DRAWS, len(before)))
    low, high = np.quantile([_gain(before[rows], after[rows]) for rows in draws], (0.05, 0.95))
    return float(low), float(high)
