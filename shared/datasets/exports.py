"""Datasets in the formats that training code and viewers open.

    folder    images/<key>.png, masks/<key>.png (indexed, with palette), classes.json
    coco      annotations.json, images/<key>.png; `file_name` is relative to images/
    geojson   geojson/<key>.geojson, a QuPath FeatureCollection in pixels of the image

Samples are written one by one, so memory does not grow with the dataset.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.features import shapes

from shared.arrays import UInt8
from shared.contracts.base import Classes
from shared.contracts.synthesize import DatasetRecord, ExportFormat
from shared.datasets.samples import Sample, image_png
from shared.imaging.codec import encode_palette_png
from shared.imaging.marks import mark_png


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


def coco_annotations(sample: Sample, *, polygons: bool = False) -> list[dict[str, Any]]:
    """Return a sample's COCO annotations: one per connected part (4-neighbours) of a class.

    Their ids come from `write_coco`, which counts over all images.

    Args:
        sample: the sample.
        polygons: outline the parts without holes by a polygon along pixel borders, for tools that
            read no run lengths; parts with holes keep run lengths, which alone can hold them.
    """
    height, width = sample.labels.shape
    image = sample.provenance.index + 1
    annotations: list[dict[str, Any]] = []
    for label in np.unique(sample.labels[sample.labels > 0]).tolist():
        mask = (sample.labels == label).astype(np.uint8)
        count, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        outlines = _polygons(parts) if polygons else {}
        for part in range(1, count):
            x, y, w, h, area = (int(value) for value in stats[part])
            annotations.append(
                {
                    "image_id": image,
                    "category_id": label,
                    "bbox": [x, y, w, h],
                    "area": area,
                    "segmentation": outlines.get(part)
                    or {"size": [height, width], "counts": run_lengths(parts == part)},
                    "iscrowd": 0,
                }
            )
    return annotations


def _polygons(parts: NDArray[np.int32]) -> dict[int, list[list[float]]]:
    """Return part → its outline as COCO writes it, [[x, y, x, y, …]], for parts without holes."""
    found = {}
    for geometry, part in shapes(parts, mask=parts > 0, connectivity=4):
        rings = geometry["coordinates"]
        if len(rings) == 1:
            found[int(part)] = [[float(value) for point in rings[0][:-1] for value in point]]
    return found


def coco_info(record: DatasetRecord) -> dict[str, Any]:
    """Return the sections of a COCO file that describe the whole dataset."""
    licenses = []
    if record.origin is not None:
        licenses.append({"id": 1, "name": record.origin.license, "url": record.origin.url})
    info = {
        "description": record.description,
        "version": "1.0",
        "contributor": "HeteroTissue",
        "url": "",
    }
    return {"info": info, "licenses": licenses}


def write_coco(
    file: IO[str],
    classes: Classes,
    images: Iterable[Any],
    annotations: Iterable[Any],
    head: Mapping[str, Any] | None = None,
) -> None:
    """Write a COCO file one entry at a time, so that memory stays bounded.

    Args:
        file: receives the text.
        classes: the categories; class 0 is none.
        images: entries of `coco_image`.
        annotations: entries of `coco_annotations`, which get the ids 1, 2, 3, ...
        head: further sections, such as those of `coco_info`.
    """
    categories = [
        {"id": item.index, "name": item.name, "supercategory": "tissue", "color": list(item.color)}
        for item in classes.items[1:]
    ]
    numbered = ({"id": 0} | row | {"id": number} for number, row in enumerate(annotations, 1))
    file.write("{")
    for name, value in (head or {}).items():
        file.write(f'"{name}":{json.dumps(value)},\n')
    opening = ""
    for name, values in (
        ("categories", categories),
        ("images", images),
        ("annotations", numbered),
    ):
        file.write(f'{opening}"{name}":[')
        opening = ",\n"
        for number, value in enumerate(values):
            file.write(",\n" if number else "\n")
            file.write(json.dumps(value, separators=(",", ":")))
        file.write("]")
    file.write("}\n")


def coco_bytes(samples: Sequence[Sample], classes: Classes) -> bytes:
    """Encode a few samples as COCO, to be joined to those of other shards."""
    text = io.StringIO()
    annotations = (row for sample in samples for row in coco_annotations(sample))
    write_coco(text, classes, map(coco_image, samples), annotations)
    return text.getvalue().encode()


def geojson_bytes(labels: UInt8, classes: Classes, step: int = 1) -> bytes:
    """Encode a label map as QuPath annotations: polygons with holes along pixel borders.

    Coordinates are pixels of the image, x to the right and y down; a pixel's centre
    lies at +0.5, so rasterizing by centres gives the label map back.

    Args:
        labels: the label map, uint8 (h, w).
        classes: its classes.
        step: pixels of the image per pixel of the label map, along each side.
    """
    scale = Affine.scale(step)
    found = shapes(labels, mask=labels > 0, connectivity=4, transform=scale)
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
        for geometry, label in found
    ]
    collection = {"type": "FeatureCollection", "features": features}
    return (json.dumps(collection, separators=(",", ":")) + "\n").encode()


def sample_files(sample: Sample, classes: Classes, kind: ExportFormat) -> list[tuple[str, bytes]]:
    """Return the files (relative path, bytes) that one sample adds to an export."""
    key = sample.provenance.key
    if kind == "geojson":
        return [(f"geojson/{key}.geojson", geojson_bytes(sample.labels, classes))]
    files = [(f"images/{key}.png", image_png(sample))]
    if kind == "folder":
        mask = encode_palette_png(sample.labels, classes.colors)
        files.append((f"masks/{key}.png", mark_png(mask, sample.mark)))
    return files
