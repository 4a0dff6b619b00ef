"""Fidelity: how far features of synthetic images lie from those of real slides never seen.

Real test slides are halved by slide. Every source of images (synthetic rows, real training
images, the other half) is held against each half, at one n for all, and never with images
whose map or crops are of the half's own slides. So the floor is what perfect images would get.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.evaluate.coverage import manifold_scores
from services.evaluate.frechet import bootstrap, distance_of
from shared.arrays import Float32, Int64

Origins = Sequence[tuple[str, ...]]
"""Names of what each image was made from, first what it shows, or what its map was taken from."""

DRAWS = 40
"""Of the bootstrap over slides."""

LEAST = 6
"""Images that precision, recall, density and coverage need on either side."""

PARTS = 3
"""One real region in so many is the reference that its own slide's images are held against."""


@dataclass(frozen=True)
class Features:
    """What an encoder sees in the images of one source.

    Attributes:
        values: float32 (n, views, dim); views are turns of the same image.
        slides: slides of each image's map and crops, or the one that it shows.
        regions: the same of regions, where they are known.
    """

    values: Float32
    slides: Origins
    regions: Origins | None = None

    def __len__(self) -> int:
        return len(self.values)

    def of(self, rows: Int64) -> Float32:
        """All views of the images `rows`, (rows · views, dim)."""
        return self.values[rows].reshape(-1, self.values.shape[2])

    @property
    def shown(self) -> NDArray[np.str_]:
        """Slide that each image shows, or that its map was taken from, (n,)."""
        return np.array([names[0] for names in self.slides], np.str_)


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
    """Some real test images, and which images of each source may be held against them."""

    reference: Int64
    candidates: dict[str, Int64]


def _apart(origins: Origins, names: AbstractSet[str]) -> Int64:
    """Numbers of the images that were made from nothing in `names`."""
    return np.flatnonzero([names.isdisjoint(own) for own in origins])


def make_folds(test: Features, sources: Mapping[str, Features]) -> list[Fold]:
    """Make the two folds; with one test slide alone, its images are halved instead."""
    sides = halves(test.shown)
    folds: list[Fold] = []
    for number, side in enumerate(sides):
        if all(sides):
            inside = np.isin(test.shown, sorted(side))
        else:
            inside, side = np.arange(len(test)) % 2 == number, set()
        candidates = {name: _apart(source.slides, side) for name, source in sources.items()}
        folds.append(Fold(np.flatnonzero(inside), {"floor": np.flatnonzero(~inside), **candidates}))
    return folds


def make_own_folds(test: Features, sources: Mapping[str, Features]) -> list[Fold]:
    """Make the folds that hold images against other regions of the slides they were made from.

    The reference is every third real region; what shows one of these, or has its map or a
    crop from one, is left out. Sources with images of other slides are too.
    """
    if test.regions is None:
        return []
    here = set(test.shown.tolist())
    known = {
        name: source.regions
        for name, source in {"floor": test, **sources}.items()
        if source.regions is not None and here.issuperset(chain.from_iterable(source.slides))
    }
    folds = []
    for start in range(PARTS):
        reference = np.arange(start, len(test), PARTS)
        names = {test.regions[number][0] for number in reference.tolist()}
        candidates = {name: _apart(regions, names) for name, regions in known.items()}
        folds.append(Fold(reference, candidates))
    return folds


def _common(folds: Sequence[Fold]) -> int:
    """Number of images that every side of every comparison has."""
    return min(
        (len(rows) for fold in folds for rows in (fold.reference, *fold.candidates.values())),
        default=0,
    )


def _draws(
    folds: Sequence[Fold], name: str, n: int, seed: int
) -> Iterator[tuple[Int64, Int64, np.random.Generator]]:
    """Draw n images of a source and n real ones for each fold; the real ones are all sources'."""
    for number, fold in enumerate(folds):
        rng = np.random.default_rng([seed, number])
        real = rng.permutation(fold.reference)[:n]
        yield rng.permutation(fold.candidates[name])[:n], real, rng


def fidelity(test: Features, sources: Mapping[str, Features], seed: int) -> dict[str, Any]:
    """Compare sources of images with real test images.

    Args:
        test: real images of held-out slides, those of one slide in a row.
        sources: name → features; images made from test slides are told by their slides.
        seed: of the draws to one n.

    Returns:
        `n` images (of `views` each) on either side, `dim`, `reliable` (whether n is at least
        twice dim: views of an image are much alike) and `rows`: name ('floor' first) → means
        over both folds of `frechet`, its 90 % `interval` over resampled slides and (of at least
        `LEAST` images) `precision`, `recall`, `density`, `coverage`; and `over_floor`. No rows
        where n is below 2. Of sources made from test slides also `own_slides`, the Fréchet
        distance to other regions of these slides (see `make_own_folds`) at `n_own_slides` images.
    """
    pool = {"floor": test, **sources}
    folds = make_folds(test, sources)
    n = _common(folds)
    views, dim = test.values.shape[1:]
    found: dict[str, Any] = {"n": n, "views": views, "dim": dim, "reliable": n >= 2 * dim}
    if n < 2:
        return {**found, "rows": {}}
    rows: dict[str, dict[str, Any]] = {}
    for name, source in pool.items():
        scores = []
        for made, real, rng in _draws(folds, name, n, seed):
            score: dict[str, Any] = {
                "frechet": distance_of(source.of(made), test.of(real)),
                "interval": bootstrap(
                    source.of(made), test.of(real), DRAWS, rng,
                    groups_one=_groups(source, made), groups_other=_groups(test, real),
                ),
            }  # fmt: skip
            if n >= LEAST:
                score |= manifold_scores(test.values[real, 0], source.values[made, 0])
            scores.append(score)
        rows[name] = {
            figure: np.mean([score[figure] for score in scores], axis=0).tolist()
            for figure in scores[0]
        }
    for name in sources:
        rows[name]["over_floor"] = rows[name]["frechet"] / max(rows["floor"]["frechet"], 1e-12)
    own_folds = make_own_folds(test, sources)
    n_own = _common(own_folds)
    if n_own >= 2:
        found["n_own_slides"] = n_own
        for name in own_folds[0].candidates:
            distances = [
                distance_of(pool[name].of(made), test.of(real))
                for made, real, _ in _draws(own_folds, name, n_own, seed)
            ]
            rows[name]["own_slides"] = float(np.mean(distances))
    return {**found, "rows": rows}


def _groups(source: Features, rows: Int64) -> Int64:
    """Number of the slide of every view."""
    numbers = np.unique(source.shown[rows], return_inverse=True)[1]
    return np.repeat(numbers, source.values.shape[1])


def nearest(queries: Float32, bank: Float32) -> list[int]:
    """For every query (n, dim), the row of the bank (m, dim) of greatest cosine similarity."""
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9) for x in (queries, bank)]
    found: list[int] = (unit[0] @ unit[1].T).argmax(1).tolist()
    return found
