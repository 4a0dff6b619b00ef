"""Fidelity: how far features of synthetic images lie from those of real slides never seen.

Real test slides are halved by slide. Every source of images (synthetic rows, real training
images, the other half) is held against each half, at one n for all, and never with images
that were made from the half's own slides. So the floor is what perfect images would get.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.evaluate.coverage import manifold_scores
from services.evaluate.frechet import bootstrap, distance_of

DRAWS = 40
"""Of the bootstrap over slides."""

LEAST = 6
"""Images that precision, recall, density and coverage need on either side."""


@dataclass(frozen=True)
class Features:
    """What an encoder sees in the images of one source.

    Attributes:
        values: float32 (n, views, dim); views are turns of the same image.
        slides: str (n,), slide of each image, or that its label map came from.
        regions: str (n,), the same of its region, where that is known.
    """

    values: NDArray[np.float32]
    slides: NDArray[np.str_]
    regions: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """All views of the images `rows`, (rows · views, dim)."""
        return self.values[rows].reshape(-1, self.values.shape[2])


def halves(slides: NDArray[np.str_]) -> tuple[set[str], set[str]]:
    """Halve slides so that both halves have about as many images: the largest first."""
    names, counts = np.unique(slides, return_counts=True)
    sides: tuple[set[str], set[str]] = (set(), set())
    sizes = [0, 0]
    for index in np.lexsort((names, -counts)):
        side = int(sizes[1] < sizes[0])
        sides[side].add(str(names[index]))
        sizes[side] += int(counts[index])
    return sides


@dataclass(frozen=True)
class Fold:
    """One half of the real test images, and which images of each source may be held against it."""

    reference: NDArray[np.int64]
    candidates: dict[str, NDArray[np.int64]]


def make_folds(test: Features, sources: Mapping[str, Features]) -> list[Fold]:
    """Make the two folds; with one test slide alone, its images are halved instead."""
    one, other = halves(test.slides)
    folds: list[Fold] = []
    for side, rest in ((one, other), (other, one)):
        inside = np.isin(test.slides, sorted(side))
        if not rest or not side:
            inside = np.arange(len(test)) % 2 == len(folds)
        candidates = {"floor": np.flatnonzero(~inside)}
        for name, source in sources.items():
            own = np.isin(source.slides, sorted(side)) if rest and side else np.zeros(len(source))
            candidates[name] = np.flatnonzero(own == 0)
        folds.append(Fold(np.flatnonzero(inside), candidates))
    return folds


def fidelity(test: Features, sources: Mapping[str, Features], seed: int) -> dict[str, Any]:
    """Compare sources of images with real test images.

    Args:
        test: real images of held-out slides.
        sources: name → features; images made from test slides are told by their slides.
        seed: of the draws to one n.

    Returns:
        `n` images (of `views` each) on either side, `dim`, `reliable` (whether n · views
        is at least twice dim) and `rows`: name ('floor' first) → `frechet` (mean over both
        folds), its 90 % `interval` over resampled slides, `over_floor`, and (of at least
        `LEAST` images) `precision`, `recall`, `density`, `coverage` against all test images;
        of sources made from test slides also `own_slides` (see there).
        No rows where n is below 2.
    """
    folds = make_folds(test, sources)
    pool = {"floor": test, **sources}
    n = min(
        *(len(fold.reference) for fold in folds),
        *(len(rows) for fold in folds for rows in fold.candidates.values()),
    )
    views, dim = test.values.shape[1:]
    found: dict[str, Any] = {"n": n, "views": views, "dim": dim, "reliable": n * views >= 2 * dim}
    if n < 2:
        return {**found, "rows": {}}
    rows: dict[str, dict[str, Any]] = {}
    for name, source in pool.items():
        distances, intervals = [], []
        for number, fold in enumerate(folds):
            rng = np.random.default_rng([seed, number])
            real = rng.permutation(fold.reference)[:n]
            made = rng.permutation(fold.candidates[name])[:n]
            distances.append(distance_of(source.of(made), test.of(real)))
            intervals.append(
                bootstrap(
                    source.of(made), test.of(real), DRAWS, rng,
                    groups_one=_groups(source, made), groups_other=_groups(test, real),
                )
            )  # fmt: skip
        rows[name] = {
            "frechet": float(np.mean(distances)),
            "interval": [float(edge) for edge in np.mean(intervals, axis=0)],
        }
        own = own_slides(test, source, n, seed)
        if own is not None:
            rows[name]["own_slides"] = own
    floor = rows["floor"]["frechet"]
    for name, source in sources.items():
        rows[name]["over_floor"] = rows[name]["frechet"] / max(floor, 1e-12)
        if min(len(test), len(source)) >= LEAST:
            rows[name] |= manifold_scores(test.values[:, 0], source.values[:, 0])
    return {**found, "rows": rows}


def own_slides(test: Features, source: Features, n: int, seed: int) -> float | None:
    """Fréchet distance to other real regions of the slides that images were made from.

    Every second real region is the reference; what is or was made from the map of one of
    these is left out. Of `test` itself it is the floor.

    Args:
        test: real images, those of one slide in a row.
        source: images of these slides.
        n: most images on either side.
        seed: of the draws to one n.

    Returns:
        The mean over both choices of every second region; None where regions are not known
        or the images are of other slides.
    """
    if test.regions is None or source.regions is None:
        return None
    if not np.isin(source.slides, test.slides).all():
        return None
    distances = []
    for start in range(2):
        rng = np.random.default_rng([seed, start])
        real = np.arange(start, len(test), 2)
        made = np.flatnonzero(~np.isin(source.regions, test.regions[real]))
        count = min(n, len(real), len(made))
        if count < 2:
            return None
        sides = (source.of(rng.permutation(made)[:count]), test.of(rng.permutation(real)[:count]))
        distances.append(distance_of(*sides))
    return float(np.mean(distances))


def _groups(source: Features, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of the slide of every view."""
    numbers = np.unique(source.slides[rows], return_inverse=True)[1]
    return np.repeat(numbers, source.values.shape[1])


def nearest(queries: NDArray[np.float32], bank: NDArray[np.float32]) -> list[int]:
    """For every query (n, dim), the row of the bank (m, dim) of greatest cosine similarity."""
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9) for x in (queries, bank)]
    found: list[int] = (unit[0] @ unit[1].T).argmax(1).tolist()
    return found
