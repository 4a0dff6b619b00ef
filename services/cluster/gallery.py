"""The gallery: example patches of every tissue type, which help a person to name it."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import pyarrow as pa

from shared.arrays import UInt8
from shared.contracts.cluster import cluster_key
from shared.contracts.ingest import CohortRecord
from shared.imaging.slide import DamagedError
from shared.imaging.stored_slides import open_slide
from shared.storage import Store
from shared.storage.formats import read_table

Spot = tuple[int, int]
"""(x, y) of a patch's left upper corner, level-0 pixels."""

EXAMPLES_PER_TYPE = 10

EXAMPLE_SIDE = 96
"""Side of an example, pixels."""

SLIDES_AT_ONCE = 32
"""Slides that are searched for examples at a time. Each may have to be fetched for its pixels."""


def read_assignments(store: Store, run: str, slide: str) -> pa.Table:
    """Read the table of a slide's patches, with the columns x, y, cluster and distance."""
    return read_table(store, cluster_key(run, f"assignments/{slide}.parquet"), local=True)


def read_patches(
    store: Store, cohort: CohortRecord, slide: str, spots: list[Spot]
) -> tuple[UInt8, list[int]]:
    """Read the patches at some corners, except those where the slide is damaged.

    Returns:
        The patches resized to 64 px, uint8 RGB (N, 64, 64, 3), and their N places in `spots`.
    """
    grid = cohort.patches
    images = np.empty((len(spots), 64, 64, 3), np.uint8)
    places: list[int] = []
    mpp = grid.size * grid.mpp / 64
    with open_slide(store, cohort, slide) as (opened, _):
        mpp = max(mpp, opened.finest)
        side = max(1, round(grid.size * grid.mpp / mpp))
        for place, (x, y) in enumerate(spots):
            try:
                image = opened.read(x, y, (side, side), mpp)
            except DamagedError:
                continue
            images[len(places)] = _resized(image, 64)
            places.append(place)
    return images[: len(places)], places


def find_examples(
    store: Store, run: str, cohort: CohortRecord, counts: Sequence[int]
) -> dict[int, list[UInt8]]:
    """Read the patches nearest to the centroid of each tissue type.

    The nearest patch of every slide comes first, then the second nearest of every slide, and so
    on, so that the examples come from many slides. Of a large cohort, `SLIDES_AT_ONCE` slides are
    looked through, and as many more for as long as a type lacks examples.

    Args:
        store: holds slides and assignments.
        run: name of the clustering.
        cohort: cohort of the clustering.
        counts: number of patches of each cluster.

    Returns:
        Label (cluster + 1) → at most `EXAMPLES_PER_TYPE` images, uint8 RGB of side
        `EXAMPLE_SIDE`; types without patches are left out, and patches where a slide is damaged.
    """
    chosen: dict[int, list[tuple[int, float, str, Spot]]] = {}
    lacking = {cluster for cluster, count in enumerate(counts) if count}
    slides = sorted(cohort.splits)
    if len(slides) > SLIDES_AT_ONCE:  # neighbours by name may come from one hospital
        slides = np.random.default_rng(0).permutation(slides).tolist()
    for start in range(0, len(slides), SLIDES_AT_ONCE):
        for cluster, spots in _rank(store, run, slides[start : start + SLIDES_AT_ONCE]).items():
            if cluster in lacking:
                more = EXAMPLES_PER_TYPE - len(chosen.get(cluster, []))
                chosen.setdefault(cluster, []).extend(sorted(spots)[:more])
        enough = {cluster: min(EXAMPLES_PER_TYPE, counts[cluster]) for cluster in lacking}
        lacking = {c for c, count in enough.items() if len(chosen.get(c, [])) < count}
        if not lacking:
            break
    images = _read_all(store, cohort, [spot for row in chosen.values() for spot in row])
    return {
        cluster + 1: [
            images[slide, spot] for _, _, slide, spot in chosen[cluster] if (slide, spot) in images
        ]
        for cluster in sorted(chosen)
    }


def _rank(
    store: Store, run: str, slides: list[str]
) -> dict[int, list[tuple[int, float, str, Spot]]]:
    """Find the patches of some slides that are nearest to each centroid.

    Returns:
        Cluster → rank of the patch in its slide, distance, slide and corner.
    """
    ranked: dict[int, list[tuple[int, float, str, Spot]]] = {}
    for slide in slides:
        table = read_assignments(store, run, slide)
        columns = (np.asarray(table[name]) for name in ("cluster", "distance", "x", "y"))
        clusters, distances, xs, ys = columns
        for cluster in np.unique(clusters).tolist():
            members = np.flatnonzero(clusters == cluster)
            nearest = members[np.argsort(distances[members], kind="stable")[:EXAMPLES_PER_TYPE]]
            ranked.setdefault(cluster, []).extend(
                (turn, float(distances[i]), slide, (int(xs[i]), int(ys[i])))
                for turn, i in enumerate(nearest.tolist())
            )
    return ranked


def _read_all(
    store: Store, cohort: CohortRecord, wanted: list[tuple[int, float, str, Spot]]
) -> dict[tuple[str, Spot], UInt8]:
    """Read patches of several slides, and open each slide once: (slide, corner) → RGB image."""
    images: dict[tuple[str, Spot], UInt8] = {}
    for slide in sorted({slide for _, _, slide, _ in wanted}):
        spots = [place for _, _, name, place in wanted if name == slide]
        for image, place in zip(*read_patches(store, cohort, slide, spots), strict=True):
            images[slide, spots[place]] = _resized(image, EXAMPLE_SIDE)
    return images


def _resized(image: UInt8, side: int) -> UInt8:
    if image.shape[0] == side:
        return image
    kind = cv2.INTER_AREA if image.shape[0] > side else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (side, side), interpolation=kind), np.uint8)
