"""Writing a dataset as plain files into a folder, with a card that says how to open them.

Beside the files of `shared.datasets.exports`:

    webdataset   shards/<n>.tar, as in the store
    parquet      data/<n>.parquet with the columns image, mask (PNG) and key
    always       README.md, manifest.parquet, classes.json
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from shared.contracts.synthesize import DatasetRecord, FolderFormat, dataset_key
from shared.datasets.cards import card_head
from shared.datasets.exports import (
    classes_json,
    coco_annotations,
    coco_image,
    coco_info,
    sample_files,
    write_coco,
)
from shared.datasets.samples import (
    Sample,
    image_png,
    load_dataset,
    mask_png,
    read_manifest,
    read_shard,
    read_shards,
)
from shared.errors import InputError
from shared.storage import Store

MARKS = ("README.md", "manifest.parquet", "classes.json")
"""Files by which a folder is known as an export."""

_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_FEATURES = {
    "image": {"_type": "Image"},
    "mask": {"_type": "Image"},
    "key": {"dtype": "string", "_type": "Value"},
}
PARQUET = pa.schema(
    [("image", _PICTURE), ("mask", _PICTURE), ("key", pa.string())],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)
"""Columns of a Parquet export, in the form in which `datasets` stores images."""

FILES: dict[FolderFormat, str] = {
    "folder": "`images/` (RGB), `masks/` (label indices, with a palette) and `metadata.jsonl`, "
    "which pairs them",
    "coco": "`annotations.json` (COCO) and `images/`",
    "geojson": "`geojson/` (QuPath annotations, in pixels of the images) and `images/`",
    "webdataset": "`shards/` (WebDataset: `<key>.png`, `<key>.mask.png`, `<key>.json`)",
    "parquet": "`data/` (Parquet: image, mask and key)",
}
DATA_FILES: dict[FolderFormat, list[str]] = {
    "parquet": ["data/*.parquet"],
    "folder": ["metadata.jsonl", "images/*.png", "masks/*.png"],
    "webdataset": ["shards/*.tar"],
}
"""Format → files that `datasets.load_dataset` reads; the first of those present is the default."""


def export_dataset(
    store: Store,
    dataset: str,
    folder: Path,
    formats: Sequence[FolderFormat] = ("folder",),
    *,
    polygons: bool = False,
    replace: bool = False,
) -> int:
    """Write a dataset as files below `folder`, whole or not at all.

    Args:
        store: holds the dataset.
        dataset: name of the dataset.
        folder: an empty folder, or one that does not exist yet.
        formats: formats to write.
        polygons: outline the parts without holes in COCO by polygons.
        replace: delete an earlier export in `folder` first.

    Returns:
        The number of images.

    Raises:
        ObjectNotFoundError: the store holds no such dataset.
        InputError: `folder` is a file, or holds files that may not be replaced; or a shard is
            damaged.
    """
    record = load_dataset(store, dataset)
    check_folder(folder, replace)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as name:
        part = Path(name)
        for shard, data in read_shards(store, record):
            for path, body in _shard_files(record, shard, data, formats):
                (part / path).parent.mkdir(parents=True, exist_ok=True)
                (part / path).write_bytes(body)
        _write_whole(store, record, part, formats, polygons)
        for item in list(folder.iterdir()):
            if item != part:
                shutil.rmtree(item) if item.is_dir() else item.unlink()
        for item in sorted(part.iterdir()):
            item.rename(folder / item.name)
    return record.images


def check_folder(folder: Path, replace: bool) -> None:
    """Raise `InputError` if an export into `folder` would mix with other files, or lose them."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: name a folder for the export")
    held = list(folder.iterdir()) if folder.is_dir() else []
    if held and not replace:
        raise InputError(
            f"{folder} holds {len(held)} files or folders already: name another folder, or replace "
            "an earlier export in it by --replace"
        )
    if held and not all((folder / name).is_file() for name in MARKS[1:]):
        raise InputError(
            f"{folder} holds files that are no export, which --replace would delete: name another "
            "folder"
        )


def _samples(store: Store, record: DatasetRecord) -> Iterator[Sample]:
    for _, data in read_shards(store, record):
        yield from read_shard(data)


def _shard_files(
    record: DatasetRecord, shard: str, data: bytes, formats: Sequence[FolderFormat]
) -> Iterator[tuple[str, bytes]]:
    """Yield the path and content of each file that a shard adds to an export."""
    name = PurePosixPath(shard).name
    if "webdataset" in formats:
        yield f"shards/{name}", data
    if "parquet" in formats:
        yield f"data/{PurePosixPath(name).stem}.parquet", _parquet(data)
    if not {"folder", "coco", "geojson"} & set(formats):
        return
    for sample in read_shard(data):
        for kind in formats:
            if kind == "folder" or kind == "coco" or kind == "geojson":
                yield from sample_files(sample, record.classes, kind)
        if "geojson" in formats:
            yield f"images/{sample.provenance.key}.png", image_png(sample)


def _parquet(shard: bytes) -> bytes:
    """Turn a WebDataset shard into a Parquet table."""
    rows = [
        {
            "image": {"bytes": image_png(sample), "path": f"{sample.provenance.key}.png"},
            "mask": {
                "bytes": mask_png(sample),
                "path": f"{sample.provenance.key}.mask.png",
            },
            "key": sample.provenance.key,
        }
        for sample in read_shard(shard)
    ]
    body = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=PARQUET), body)
    data: bytes = body.getvalue().to_pybytes()
    return data


def _write_whole(
    store: Store,
    record: DatasetRecord,
    folder: Path,
    formats: Sequence[FolderFormat],
    polygons: bool,
) -> None:
    """Write the files that describe all images."""
    keys = read_manifest(store, record, ["key"])["key"].to_pylist()
    manifest = store.local(dataset_key(record.dataset, "manifest.parquet"))
    shutil.copyfile(manifest, folder / "manifest.parquet")
    (folder / "classes.json").write_bytes(classes_json(record.classes))
    (folder / "README.md").write_text(export_card(record, formats), encoding="utf-8")
    if "folder" in formats:
        rows = (
            {"file_name": f"images/{key}.png", "mask_file_name": f"masks/{key}.png", "key": key}
            for key in keys
        )
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
    if "coco" in formats:
        with (folder / "annotations.json").open("w", encoding="utf-8") as file:
            images = map(coco_image, _samples(store, record))
            each = _samples(store, record)
            rows = (row for sample in each for row in coco_annotations(sample, polygons=polygons))
            write_coco(file, record.classes, images, rows, coco_info(record))


def export_card(record: DatasetRecord, formats: Sequence[FolderFormat]) -> str:
    """Write the README of an export; its front matter tells `datasets` what to open."""
    opened = [(kind, paths) for kind, paths in DATA_FILES.items() if kind in formats]
    configs = [
        {
            "config_name": kind,
            "data_files": [{"split": "train", "path": paths}],
            **({} if number else {"default": True}),
        }
        for number, (kind, paths) in enumerate(opened)
    ]
    lines = [
        *card_head(record, **({"configs": configs} if configs else {})),
        *(f"- {FILES[kind]}" for kind in formats),
        "- `manifest.parquet`: one row per image, with its map, crops and seed",
        "- `classes.json`: index, name and colour of each class",
        "",
        "| label | class | share of labelled pixels |",
        "|---|---|---|",
        *(
            f"| {item.index} | {item.name} | {record.proportions.get(item.name, 0):.3f} |"
            for item in record.classes.items
            if item.index or record.classes.exhaustive
        ),
        "",
        record.terms,
    ]
    return "\n".join(lines) + "\n"
