"""Cuts regions along the label maps of a clustering, with the classes that types.yaml states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from services.cluster.gallery import find_examples
from shared.arrays import UInt8
from shared.contracts.cluster import ClusterRecord, cluster_key
from shared.contracts.ingest import CohortRecord, cohort_key
from shared.contracts.regions import RegionRule, RegionSet, RegionSetSlide, SourceSlide
from shared.errors import InputError
from shared.imaging.codec import encode_png
from shared.imaging.label_map import LABEL_TILE, write_label_map
from shared.imaging.marks import PARTLY, mark_png
from shared.imaging.region_cutting import cut_regions
from shared.imaging.region_index import put_region_set
from shared.imaging.sheet import sheet
from shared.imaging.stored_slides import open_label_map, open_slide
from shared.storage import Store, sha256
from shared.tissue_types import classes_of, read_types


def write_map(path: Path, labels: UInt8, mpp: float) -> None:
    """Write a label map, uint8 (height, width), at `mpp` µm per pixel, as a tiled file."""
    height, width = labels.shape
    strips = (labels[top : top + LABEL_TILE] for top in range(0, height, LABEL_TILE))
    write_label_map(path, strips, width, height, mpp)


def types_digest(table: UInt8, rule: RegionRule) -> str:
    """Return a digest of what regions follow from, besides the label map of the clusters.

    They hold numbers of classes: a type may get another name or colour without new ones.

    Args:
        table: cluster → index of its class.
        rule: rule of the regions.
    """
    return sha256(table.tobytes() + rule.model_dump_json().encode())


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
        `regions`, the number of regions, `sha256`, the digest of their shard, `synthetic`,
        whether the slide says that a model made it, and `types`, see `types_digest`.
    """
    classes, table = classes_of(read_types(store, run, k))
    types = types_digest(table, rule)
    with open_label_map(store, cluster_key(run, f"labels/{slide}.tif")) as raw:
        labels, mpp = table[raw.whole()], raw.mpp
    key = cluster_key(run, f"classes/{slide}.tif")
    with store.writing(key) as path:
        write_map(path, labels, mpp)
    with open_slide(store, cohort, slide) as (opened, own), open_label_map(store, key) as merged:
        cut = cut_regions(store, run, slide, opened, merged, len(classes), rule)
    return {
        "regions": cut.regions, "sha256": cut.sha256, "synthetic": own.synthetic, "types": types,
    }  # fmt: skip


def check_types(run: str, used: str, wanted: str) -> None:
    """Raise `InputError` if regions were cut by other tissue types than they should have been."""
    if used != wanted:
        raise InputError(
            f"{cluster_key(run, 'types.yaml')} was changed while regions were cut, so that they "
            "would be of two kinds: submit the request again"
        )


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
    classes, table = classes_of(types)
    digest = types_digest(table, rule)
    for part in parts.values():
        check_types(record.run, part.get("types", digest), digest)
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
                **{key: value for key, value in parts[name].items() if key != "types"},
            )
            for name in sorted(parts)
        ),
        cautions=cohort.cautions,
        left_out=tuple(
            SourceSlide(
                slide=name, sha256=cohort.sha256.get(name), patient=cohort.patients.get(name)
            )
            for name in sorted(cohort.splits.keys() - parts.keys())
        ),
    )
    return put_region_set(store, region_set)
