"""Cuts regions along the label maps of a clustering, with the classes that types.yaml states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from services.cluster.gallery import find_examples
from shared.arrays import UInt8
from shared.contracts.cluster import ClusterRecord, cluster_key
from shared.contracts.ingest import CohortRecord, cohort_key
from shared.contracts.regions import RegionRule, RegionSet, RegionSetSlide
from shared.imaging.codec import encode_png
from shared.imaging.label_map import LABEL_TILE, write_label_map
from shared.imaging.marks import PARTLY, mark_png
from shared.imaging.region_cutting import cut_regions
from shared.imaging.region_index import put_region_set
from shared.imaging.region_sets import load_region_set
from shared.imaging.sheet import sheet
from shared.imaging.stored_slides import open_label_map, open_slide
from shared.storage import Store
from shared.tissue_types import classes_of, read_types


def write_map(path: Path, labels: UInt8, mpp: float) -> None:
    """Write a label map, uint8 (height, width), at `mpp` µm per pixel, as a tiled file."""
    height, width = labels.shape
    strips = (labels[top : top + LABEL_TILE] for top in range(0, height, LABEL_TILE))
    write_label_map(path, strips, width, height, mpp)


def cut_slide(
    store: Store, run: str, k: int, cohort: CohortRecord, slide: str, rule: RegionRule
) -> dict[str, Any]:
    """Write a slide's label map with its clusters merged into classes, and cut regions along it.

    Args:
        store: holds the clustering.
        run, k: name of the clustering, and its number of clusters.
        cohort: cohort of the clustering.
        slide: name of the slide.
        rule: rule of the regions.

    Returns:
        `regions`, the number of regions, `sha256`, the digest of their shard, and `synthetic`,
        whether the slide says that a model made it.
    """
    classes, table = classes_of(read_types(store, run, k))
    with open_label_map(store, cluster_key(run, f"labels/{slide}.tif")) as raw:
        labels, mpp = table[raw.whole()], raw.mpp
    key = cluster_key(run, f"classes/{slide}.tif")
    with store.writing(key) as path:
        write_map(path, labels, mpp)
    with open_slide(store, cohort, slide) as (opened, own), open_label_map(store, key) as merged:
        cut = cut_regions(store, run, slide, opened, merged, len(classes), rule)
    return {"regions": cut.regions, "sha256": cut.sha256, "synthetic": own.synthetic}


def sum_up(
    store: Store, record: ClusterRecord, rule: RegionRule, parts: dict[str, dict[str, Any]]
) -> RegionSet:
    """Write the record of a clustering's region set, and the gallery of its tissue types.

    Args:
        store: holds the clustering, and receives record and gallery.
        record: record of the clustering.
        rule: rule that the regions were cut by.
        parts: slide → result of `cut_slide`.
    """
    cohort = store.get_model(cohort_key(record.cohort), CohortRecord)
    types = read_types(store, record.run, record.k)
    classes, _ = classes_of(types)
    cut = {name: split for name, split in cohort.splits.items() if name in parts}
    held = cohort.model_copy(update={"splits": cut})
    examples = find_examples(store, record.run, held, record.counts)
    picture = sheet(list(examples.values()), [types[label].name for label in examples])
    pictures = {"gallery.png": picture}
    pictures |= {f"examples/{label}.png": np.hstack(own) for label, own in examples.items()}
    synthetic = any(part.get("synthetic") for part in parts.values())
    for name, pixels in pictures.items():
        png = encode_png(pixels)
        store.put(cluster_key(record.run, name), mark_png(png, PARTLY) if synthetic else png)
    region_set = RegionSet(
        name=record.run,
        cohort=record.cohort,
        labels=f"clusters/{record.run}",
        classes=classes,
        rule=rule,
        slides=tuple(
            RegionSetSlide(
                slide=name,
                split=cohort.splits[name],
                patient=cohort.patients.get(name),
                **parts[name],
            )
            for name in sorted(parts)
        ),
        cautions=cohort.cautions,
    )
    return put_region_set(store, region_set)


def apply_types(store: Store, run: str) -> RegionSet:
    """Make a clustering's regions and gallery again, after its types.yaml was edited.

    The clusters stay unchanged. The same types.yaml always gives the same bytes.

    Raises:
        InputError: the clustering is missing, or its types.yaml is malformed.
    """
    record = store.get_model(cluster_key(run, "run.json"), ClusterRecord)
    before = load_region_set(store, run)
    classes_of(read_types(store, run, record.k))
    cohort = store.get_model(cohort_key(record.cohort), CohortRecord)
    parts = {
        part.slide: cut_slide(store, run, record.k, cohort, part.slide, before.rule)
        for part in before.slides
    }
    return sum_up(store, record, before.rule, parts)
