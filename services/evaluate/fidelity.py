"""Fidelity: distances between the features of images and those of real test images.

The real test slides are divided into two halves. Every source of images (synthetic rows, real
training images, the other half) is compared with each half. All comparisons use the same number n
of images, and leave out synthetic images whose map or crops come from slides of that half. So the
floor, the distance of one half to the other, is the distance that perfect images would have.
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
"""Names of the slides (or regions) that each image comes from.

A real image has one name. A synthetic image has the name for its map first, then those for its
crops.
"""

DRAWS = 40
"""Number of bootstrap draws for an interval."""

MIN_MANIFOLD_IMAGES = 6
"""Smallest number of images per side for precision, recall, density and coverage."""

OWN_FOLDS = 3
"""Number of folds of `make_own_folds`; the reference of a fold is every third real region."""


@dataclass(frozen=True)
class FeatureSet:
    """Features of the images of one source.

    Attributes:
        values: float32 (n, views, dim); the views are quarter turns of one image.
        slides: slides that each image comes from.
        regions: regions that each image comes from; None if they are not known.
    """

    values: Float32
    slides: Origins
    regions: Origins | None = None

    def __len__(self) -> int:
        return len(self.values)

    def of(self, rows: Int64) -> Float32:
        """Return the features of all views of some images, float32 (len(rows) · views, dim)."""
        return self.values[rows].reshape(-1, self.values.shape[2])

    @property
    def main_slides(self) -> NDArray[np.str_]:
        """Name of each image's slide, (n,); for a synthetic image, the slide of its map."""
        return np.array([names[0] for names in self.slides], np.str_)


def halves(slides: NDArray[np.str_]) -> tuple[set[str], set[str]]:
    """Divide slides into two sets with about equally many images.

    The slides are taken by falling number of images, and each goes to the smaller set.

    Args:
        slides: name of the slide of each image, (n,).
    """
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
    """Numbers of some real test images, and of the images that may be compared with them.

    Attributes:
        reference: int64, numbers of the real test images.
        candidates: name of a source → int64, numbers of its images that may be compared.
    """

    reference: Int64
    candidates: dict[str, Int64]


def _not_from(origins: Origins, names: AbstractSet[str]) -> Int64:
    """Return the numbers of the images that come from none of the slides or regions in `names`."""
    return np.flatnonzero([names.isdisjoint(own) for own in origins])


def make_folds(test: FeatureSet, sources: Mapping[str, FeatureSet]) -> list[Fold]:
    """Make one fold for each half of the test slides.

    If there is only one test slide, each fold has every other image of it as its reference, and
    no synthetic image is left out.
    """
    sides = halves(test.main_slides)
    folds: list[Fold] = []
    for number, side in enumerate(sides):
        if all(sides):
            inside = np.isin(test.main_slides, sorted(side))
        else:
            inside, side = np.arange(len(test)) % 2 == number, set()
        candidates = {name: _not_from(source.slides, side) for name, source in sources.items()}
        folds.append(Fold(np.flatnonzero(inside), {"floor": np.flatnonzero(~inside), **candidates}))
    return folds


def make_own_folds(test: FeatureSet, sources: Mapping[str, FeatureSet]) -> list[Fold]:
    """Make the folds that compare synthetic images with other regions of their own slides.

    The reference of a fold is every third real region. Images that show one of these regions, or
    have their map or a crop from one, are left out. A source is left out if any of its images
    comes from a slide that is not a test slide.
    """
    if test.regions is None:
        return []
    here = set(test.main_slides.tolist())
    known = {
        name: source.regions
        for name, source in {"floor": test, **sources}.items()
        if source.regions is not None and here.issuperset(chain.from_iterable(source.slides))
    }
    folds = []
    for start in range(OWN_FOLDS):
        reference = np.arange(start, len(test), OWN_FOLDS)
        names = {test.regions[number][0] for number in reference.tolist()}
        candidates = {name: _not_from(regions, names) for name, regions in known.items()}
        folds.append(Fold(reference, candidates))
    return folds


def _common_size(folds: Sequence[Fold]) -> int:
    """Return the greatest number of images that both sides of every comparison can have."""
    return min(
        (len(rows) for fold in folds for rows in (fold.reference, *fold.candidates.values())),
        default=0,
    )


def _draws(
    folds: Sequence[Fold], name: str, n: int, seed: int
) -> Iterator[tuple[Int64, Int64, np.random.Generator]]:
    """Draw n images of a source and n real images for each fold.

    Yields:
        Row numbers in the source, row numbers in the real test images, and the fold's random
        generator for further draws. The real images are drawn first, so all sources get the same.
    """
    for number, fold in enumerate(folds):
        rng = np.random.default_rng([seed, number])
        real = rng.permutation(fold.reference)[:n]
        yield rng.permutation(fold.candidates[name])[:n], real, rng


def fidelity(test: FeatureSet, sources: Mapping[str, FeatureSet], seed: int) -> Fidelity:
    """Compare sources of images with real test images.

    Args:
        test: real images of held-out slides, ordered by slide.
        sources: name of a source → its features and their origins.
        seed: seed of the draws of n images.

    Returns:
        A row for 'floor' and for each source; no rows if n is below 2. `reliable` depends on n
        alone and not on the number of views, because views of one image are much alike. From
        `MIN_MANIFOLD_IMAGES` images on, rows have precision, recall, density and coverage.
        Sources made only from test slides have `own_slides` too (see `make_own_folds`).
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
    """Return the means of a source's figures over the folds."""
    distances, intervals, scores = [], [], []
    for chosen, real, rng in draws:
        one, other = source.of(chosen), test.of(real)
        distances.append(distance_of(one, other))
        intervals.append(
            bootstrap(
                one, other, DRAWS, rng,
                groups_one=_groups(source, chosen), groups_other=_groups(test, real),
            )
        )  # fmt: skip
        if len(chosen) >= MIN_MANIFOLD_IMAGES:
            scores.append(manifold_scores(test.values[real, 0], source.values[chosen, 0]))
    low, high = np.mean(intervals, axis=0).tolist()
    means = ManifoldScores(*np.mean(scores, axis=0).tolist())._asdict() if scores else {}
    return FidelityRow(frechet=float(np.mean(distances)), interval=(low, high), **means)


def _own_slides(
    test: FeatureSet, sources: Mapping[str, FeatureSet], seed: int
) -> tuple[int, dict[str, float]]:
    """Compare the images of each source with other real regions of their own slides.

    Returns:
        The number of images on each side of a comparison, and source → mean Fréchet distance over
        the folds of `make_own_folds`. There are no distances if that number is below 2.
    """
    folds = make_own_folds(test, sources)
    n = _common_size(folds)
    if n < 2:
        return n, {}
    pool = {"floor": test, **sources}
    distances = {
        name: [
            distance_of(pool[name].of(chosen), test.of(real))
            for chosen, real, _ in _draws(folds, name, n, seed)
        ]
        for name in folds[0].candidates
    }
    return n, {name: float(np.mean(values)) for name, values in distances.items()}


def _groups(source: FeatureSet, rows: Int64) -> Int64:
    """Return the slide's number for every view of the images `rows`, int64 (len(rows) · views,)."""
    numbers = np.unique(source.main_slides[rows], return_inverse=True)[1]
    return np.repeat(numbers, source.values.shape[1])


def nearest(queries: Float32, bank: Float32) -> list[int]:
    """Find the row of `bank` with the largest cosine similarity to each query.

    Args:
        queries: features (n, dim).
        bank: features (m, dim).

    Returns:
        n row numbers.
    """
    queries, bank = (
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
        for rows in (queries, bank)
    )
    best: list[int] = (queries @ bank.T).argmax(1).tolist()
    return best
