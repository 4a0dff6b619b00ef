"""Fidelity: distances between features of images and of real images of slides never seen.

Real test slides are halved by slide. Every source of images (synthetic rows, real training
images, the other half) is compared with each half, with n images for all sources, and never with
images whose map or crops come from that half's slides. The floor, one half against the other, is
therefore the distance that perfect images would have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from services.evaluate.coverage import ManifoldScores, manifold_scores
from services.evaluate.frechet import bootstrap, distance_of
from shared.arrays import Float32, Int64
from shared.contracts.evaluate import Fidelity, FidelityRow

Origins = Sequence[tuple[str, ...]]
"""Slides or regions of each image: its own; of a synthetic one, its map's and then its crops'."""

DRAWS = 40
"""Resamples of the slides, for an interval."""

MIN_MANIFOLD_IMAGES = 6
"""Images on either side that precision, recall, density and coverage need."""

OWN_FOLDS = 3
"""Folds of `make_own_folds`: each has one real region in three as its reference."""


@dataclass(frozen=True)
class FeatureSet:
    """Features of the images of one source.

    Attributes:
        values: float32 (n, views, dim); views are turns of the same image.
        slides: slides of each image.
        regions: regions of each image, where they are known.
    """

    values: Float32
    slides: Origins
    regions: Origins | None = None

    def __len__(self) -> int:
        return len(self.values)

    def of(self, rows: Int64) -> Float32:
        """Return all views of the images `rows`, (rows · views, dim)."""
        return self.values[rows].reshape(-1, self.values.shape[2])

    @property
    def shown(self) -> NDArray[np.str_]:
        """First slide of each image: its own, or that of its map, (n,)."""
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
    """Some real test images, and the images of each source that may be compared with them.

    Attributes:
        reference: numbers of the real test images.
        candidates: source → numbers of its images.
    """

    reference: Int64
    candidates: dict[str, Int64]


def _made_without(origins: Origins, names: AbstractSet[str]) -> Int64:
    """Numbers of the images that have no origin in `names`."""
    return np.flatnonzero([names.isdisjoint(own) for own in origins])


def make_folds(test: FeatureSet, sources: Mapping[str, FeatureSet]) -> list[Fold]:
    """Make the two folds; with one test slide alone, its images are halved instead."""
    sides = halves(test.shown)
    folds: list[Fold] = []
    for number, side in enumerate(sides):
        if all(sides):
            inside = np.isin(test.shown, sorted(side))
        else:
            inside, side = np.arange(len(test)) % 2 == number, set()
        candidates = {name: _made_without(source.slides, side) for name, source in sources.items()}
        folds.append(Fold(np.flatnonzero(inside), {"floor": np.flatnonzero(~inside), **candidates}))
    return folds


def make_own_folds(test: FeatureSet, sources: Mapping[str, FeatureSet]) -> list[Fold]:
    """Make the folds that compare images with other regions of the slides they were made from.

    The reference is every third real region. Images that show one of these regions, or have
    their map or a crop from one, are left out; so are sources with images of other slides.
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
    for start in range(OWN_FOLDS):
        reference = np.arange(start, len(test), OWN_FOLDS)
        names = {test.regions[number][0] for number in reference.tolist()}
        candidates = {name: _made_without(regions, names) for name, regions in known.items()}
        folds.append(Fold(reference, candidates))
    return folds


def _common_size(folds: Sequence[Fold]) -> int:
    """Return the number of images that every side of every comparison has."""
    return min(
        (len(rows) for fold in folds for rows in (fold.reference, *fold.candidates.values())),
        default=0,
    )


def _draws(
    folds: Sequence[Fold], name: str, n: int, seed: int
) -> Iterator[tuple[Int64, Int64, np.random.Generator]]:
    """Draw n images of a source and n real ones for each fold, the same real ones for all."""
    for number, fold in enumerate(folds):
        rng = np.random.default_rng([seed, number])
        real = rng.permutation(fold.reference)[:n]
        yield rng.permutation(fold.candidates[name])[:n], real, rng


def fidelity(test: FeatureSet, sources: Mapping[str, FeatureSet], seed: int) -> Fidelity:
    """Compare sources of images with real test images.

    Args:
        test: real images of held-out slides; the images of one slide are neighbours.
        sources: name → features; their slides tell which of them were made from test slides.
        seed: of the draws of n images.

    Returns:
        A row for 'floor' and for each source; no rows where n is below 2. Views of an image are
        much alike, so they do not count for `reliable`. Precision, recall, density and coverage
        are there from `MIN_MANIFOLD_IMAGES` images on; `own_slides` is there for sources that
        were made from test slides alone (see `make_own_folds`).
    """
    pool = {"floor": test, **sources}
    folds = make_folds(test, sources)
    n = _common_size(folds)
    views, dim = test.values.shape[1:]
    if n < 2:
        return Fidelity(n=n, views=views, dim=dim, reliable=n >= 2 * dim, rows={})
    rows = {name: _row(test, pool[name], list(_draws(folds, name, n, seed))) for name in pool}
    n_own, own = _own_slides(test, sources, seed)
    floor = max(rows["floor"].frechet, 1e-12)
    return Fidelity(
        n=n,
        views=views,
        dim=dim,
        reliable=n >= 2 * dim,
        n_own_slides=n_own if own else None,
        rows={
            name: row.model_copy(
                update={
                    "over_floor": row.frechet / floor if name in sources else None,
                    "own_slides": own.get(name),
                }
            )
            for name, row in rows.items()
        },
    )


def _row(
    test: FeatureSet,
    source: FeatureSet,
    draws: Sequence[tuple[Int64, Int64, np.random.Generator]],
) -> FidelityRow:
    """Average the figures of a source over the folds."""
    distances, intervals, scores = [], [], []
    for made, real, rng in draws:
        one, other = source.of(made), test.of(real)
        distances.append(distance_of(one, other))
        intervals.append(
            bootstrap(
                one, other, DRAWS, rng,
                groups_one=_groups(source, made), groups_other=_groups(test, real),
            )
        )  # fmt: skip
        if len(made) >= MIN_MANIFOLD_IMAGES:
            scores.append(manifold_scores(test.values[real, 0], source.values[made, 0]))
    low, high = np.mean(intervals, axis=0).tolist()
    means = ManifoldScores(*np.mean(scores, axis=0).tolist())._asdict() if scores else {}
    return FidelityRow(frechet=float(np.mean(distances)), interval=(low, high), **means)


def _own_slides(
    test: FeatureSet, sources: Mapping[str, FeatureSet], seed: int
) -> tuple[int, dict[str, float]]:
    """Return n, and for n above 1 the distance of each source to other regions of its slides."""
    folds = make_own_folds(test, sources)
    n = _common_size(folds)
    if n < 2:
        return n, {}
    pool = {"floor": test, **sources}
    distances = {
        name: [
            distance_of(pool[name].of(made), test.of(real))
            for made, real, _ in _draws(folds, name, n, seed)
        ]
        for name in folds[0].candidates
    }
    return n, {name: float(np.mean(values)) for name, values in distances.items()}


def _groups(source: FeatureSet, rows: Int64) -> Int64:
    """Return the number of the slide of every view."""
    numbers = np.unique(source.shown[rows], return_inverse=True)[1]
    return np.repeat(numbers, source.values.shape[1])


def nearest(queries: Float32, bank: Float32) -> list[int]:
    """Return the row of the bank (m, dim) of greatest cosine similarity to each query (n, dim)."""
    queries, bank = (
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
        for rows in (queries, bank)
    )
    best: list[int] = (queries @ bank.T).argmax(1).tolist()
    return best
