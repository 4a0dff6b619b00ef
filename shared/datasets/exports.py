"""Datasets in the formats that training code and viewers open.

    folder    images/<key>.png, masks/<key>.png (indexed, with palette), classes.json
    coco      annotations.json; `file_name` is relative to the images
    geojson   geojson/<key>.geojson, a QuPath FeatureCollection in pixels of the image

Samples are written one by one, so memory does not grow with the dataset.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rasterio.features import shapes

from shared.contracts.base import Classes
from shared.contracts.synthesize import ExportFormat, dataset_key
from shared.datasets.samples import Sample, load_dataset, read_shard
from shared.imaging.codec import encode_palette_png, encode_png
from shared.storage import Store

MAX_PARTS = 100_000
"""Upper bound on the connected parts of an image; it keeps COCO's annotation ids distinct."""


def classes_json(classes: Classes) -> bytes:
    """Encode the index, name and colour of each class as JSON."""
    return (json.dumps(classes.model_dump(mode="json")["items"], indent=1) + "\n").encode()


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Encode a mask as COCO's uncompressed run lengths, column by column, zeros first."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    runs: list[int] = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    return runs


def coco_image(sample: Sample) -> dict[str, Any]:
    """Return a sample's entry in COCO's `images`; ids count from 1."""
    height, width = sample.labels.shape
    key = sample.provenance.key
    return {
        "id": sample.provenance.index + 1,
        "file_name": f"{key}.png",
        "width": width,
        "height": height,
    }


def coco_annotations(sample: Sample) -> list[dict[str, Any]]:
    """Return a sample's COCO annotations: one per connected part (4-neighbours) of a class."""
    height, width = sample.labels.shape
    image = sample.provenance.index + 1
    annotations: list[dict[str, Any]] = []
    for label in np.unique(sample.labels[sample.labels > 0]).tolist():
        mask = (sample.labels == label).astype(np.uint8)
        count, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        for part in range(1, count):
            x, y, w, h, area = (int(value) for value in stats[part])
            annotations.append(
                {
                    "id": image * MAX_PARTS + len(annotations),
                    "image_id": image,
                    "category_id": label,
                    "bbox": [x, y, w, h],
                    "area": area,
                    "segmentation": {
                        "size": [height, width],
                        "counts": run_lengths(parts == part),
                    },
                    "iscrowd": 0,
                }
            )
    return annotations


def write_coco(
    file: IO[str], classes: Classes, images: Iterable[Any], annotations: Iterable[Any]
) -> None:
    """Write a COCO file one entry at a time, so that memory stays bounded."""
    categories = [
        {"id": item.index, "name": item.name, "supercategory": "tissue", "color": list(item.color)}
        for item in classes.items[1:]
    ]
    opening = "{"
    for name, values in (
        ("categories", categories),
        ("images", images),
        ("annotations", annotations),
    ):
        file.write(f'{opening}"{name}":[')
        for number, value in enumerate(values):
            file.write(",\n" if number else "\n")
            file.write(json.dumps(value, separators=(",", ":")))
        file.write("]")
        opening = ",\n"
    file.write("}\n")


def coco_bytes(samples: Sequence[Sample], classes: Classes) -> bytes:
    """Encode a few samples as a complete COCO file."""
    text = io.StringIO()
    annotations = (row for sample in samples for row in coco_annotations(sample))
    write_coco(text, classes, map(coco_image, samples), annotations)
    return text.getvalue().encode()


def geojson_bytes(sample: Sample, classes: Classes) -> bytes:
    """Encode a label map as QuPath annotations: polygons with holes along pixel borders.

    Coordinates are pixels of the image, x to the right and y down; a pixel's centre
    lies at +0.5, so rasterizing by centres gives the label map back.
    """
    features = [
        {
            "type": "Feature",
            "geometry": geometry,
            "properties": {
                "objectType": "annotation",
                "classification": {
                    "name": classes.names[int(label)],
                    "color": list(classes.colors[int(label)]),
                },
            },
        }
        for geometry, label in shapes(sample.labels, mask=sample.labels > 0, connectivity=4)
    ]
    collection = {"type": "FeatureCollection", "features": features}
    return (json.dumps(collection, separators=(",", ":")) + "\n").encode()


def sample_files(sample: Sample, classes: Classes, kind: ExportFormat) -> list[tuple[str, bytes]]:
    """Return the files (relative path, bytes) that one sample adds to an export."""
    key = sample.provenance.key
    if kind == "folder":
        return [
            (f"images/{key}.png", encode_png(sample.image)),
            (f"masks/{key}.png", encode_palette_png(sample.labels, classes.colors)),
        ]
    if kind == "geojson":
        return [(f"geojson/{key}.geojson", geojson_bytes(sample, classes))]
    return []


def export_dataset(
    store: Store,
    dataset: str,
    folder: Path,
    formats: Sequence[ExportFormat] = ("folder",),
) -> int:
    """Write a dataset as plain files below `folder`, with its `manifest.parquet`.

    Returns:
        The number of images.

    Raises:
        ObjectNotFoundError: the store holds no such dataset.
    """
    record = load_dataset(store, dataset)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.parquet").write_bytes(store.get(dataset_key(dataset, "manifest.parquet")))
    (folder / "classes.json").write_bytes(classes_json(record.classes))
    count = 0
    for shard in record.shards:
        for sample in read_shard(store.get(shard)):
            count += 1
            for kind in formats:
                for name, body in sample_files(sample, record.classes, kind):
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(body)
    if "coco" in formats:
        with (folder / "annotations.json").open("w", encoding="utf-8") as file:
            samples = (s for shard in record.shards for s in read_shard(store.get(shard)))
            annotated = (s for shard in record.shards for s in read_shard(store.get(shard)))
            annotations = (row for sample in annotated for row in coco_annotations(sample))
            write_coco(file, record.classes, map(coco_image, samples), annotations)
    return count
