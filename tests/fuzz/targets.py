"""The parsers of files and bodies that come from outside, each with seeds to damage."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import tifffile
from fastapi.exceptions import RequestValidationError
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from heterotissue.pipelines import load_pipeline
from heterotissue.recipes import load_recipe
from heterotissue.sources.dicom import read_instance
from heterotissue.sources.listed import find_by_table
from services.gateway.api.json_bodies import parse
from services.gateway.api.problems import ProblemError
from services.ingest import tile_tables
from services.ingest.annotations.outlines import SlideGeometry
from services.ingest.annotations.writing import write_annotation
from shared.contracts.annotations import FORMATS
from shared.contracts.base import Classes
from shared.contracts.cluster import default_types, write_types
from shared.contracts.gateway import ImageBody
from shared.contracts.requests import REQUESTS
from shared.contracts.tiles import TILE_COLUMNS
from shared.errors import HeteroTissueError
from shared.features import read_features
from shared.imaging.codec import decode_png, encode_png
from shared.imaging.label_map import LabelMap, write_label_map
from shared.imaging.masks import open_mask
from shared.imaging.slide import Slide
from shared.imaging.tile_images import read_image
from shared.jobs.snapshot import Snapshot
from shared.storage import DirectoryStore, check_key
from shared.storage.formats import table_bytes
from shared.tissue_types import read_types
from tests.formats import slide_files
from tests.formats.cohort_files import write_dicom
from tests.formats.drawing import draw

CLASSES = Classes.of("tumor", "stroma")
IMAGE_BODY = TypeAdapter(ImageBody)
GEOMETRY = SlideGeometry(60, 40, 1.0, 1.0, bounds=(5, 5, 50, 30), offset_nm=(10.0, 20.0))
LABELS = np.zeros((40, 60), np.uint8)
LABELS[5:30, 5:40], LABELS[10:20, 10:30] = 1, 2
IMAGE = np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8)


@dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        name: name of the parser.
        run: parses the file at a path.
        seeds: file name → content of sound files.
        refusals: the errors by which it may refuse an input.
        share: how often it is drawn, against 1 for others.
    """

    name: str
    run: Callable[[Path], object]
    seeds: dict[str, bytes]
    refusals: tuple[type[Exception], ...] = (HeteroTissueError,)
    share: float = field(default=1.0)


def make_targets(folder: Path) -> list[Target]:
    """Make the seeds in an empty folder, and return the targets."""
    return [
        Target("slide", _slide, _slides(folder), share=2),
        Target("dicom header", read_instance, {"a.dcm": _dicom(folder)}),
        Target("mask", _mask, _masks(folder)),
        Target("tile", read_image, _tile_pictures(), share=0.2),
        Target("label map", _label_map, _label_maps(folder)),
        Target("annotation", _annotation, _annotations(folder), share=4),
        Target("features", read_features, _features(folder), share=2),
        Target("png", lambda path: decode_png(path.read_bytes()), {"a.png": encode_png(IMAGE)}),
        Target("recipe", lambda path: load_recipe(str(path)), {"a.yaml": RECIPE}),
        Target("pipeline", load_pipeline, {"a.yaml": PIPELINE}),
        Target("tissue types", _types, {"types.yaml": write_types(default_types(4))}),
        Target("table of slides", _table, TABLES, share=2),
        Target("table of tiles", _tiles, {"tiles.parquet": _tile_table()}),
        Target("record of a job", _record, RECORDS),
        Target("key", _key, {"a": b"slides/a/slide.json"}),
        Target("request", _request, BODIES, (ValidationError,), share=2),
        Target("image body", lambda path: parse(IMAGE_BODY, path.read_bytes()),
               {"a.json": _image_body()}, (RequestValidationError, ProblemError)),
    ]  # fmt: skip


def _slide(path: Path) -> None:
    slide = Slide.open(path, mpp=0.5)
    try:
        slide.thumbnail(64)
        slide.read(0, 0, (64, 64), 1.0)
    finally:
        slide.close()


def _slides(folder: Path) -> dict[str, bytes]:
    picture = slide_files.picture()[:256, :256]
    paths = [
        slide_files.write_tiff(folder / "tiled.tif", picture, tile=(128, 128)),
        slide_files.write_tiff(folder / "strips.tiff", picture, compression="zlib"),
        slide_files.write_ome(
            folder / "a.ome.tiff", picture, {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}, 20
        ),
        slide_files.write_leica(folder / "a.scn", picture, 64, 64, 512, 512),
    ]
    svs = folder / "a.svs"
    with tifffile.TiffWriter(svs) as file:
        text = "Aperio Image Library v10\r\n256x256 [0,0 256x256] (128x128)|AppMag = 20|MPP = 0.5"
        file.write(picture, tile=(128, 128), photometric="rgb", description=text, metadata=None)
    pictures = {f"a.{kind}": _picture(kind) for kind in ("png", "jpeg", "bmp")}
    return {path.name: path.read_bytes() for path in (*paths, svs)} | pictures | {
        "a.dcm": _dicom(folder)
    }  # fmt: skip


def _picture(kind: str, **options: Any) -> bytes:
    body = io.BytesIO()
    Image.fromarray(IMAGE).save(body, kind, **options)
    return body.getvalue()


def _tile_pictures() -> dict[str, bytes]:
    pictures = {f"a.{kind}": _picture(kind) for kind in ("png", "jpeg", "bmp", "gif", "tiff")}
    pictures["a.webp"] = _picture("webp", lossless=True)
    moving = Image.fromarray(IMAGE[::-1])
    for kind in ("gif", "png"):
        pictures[f"moving.{kind}"] = _picture(kind, save_all=True, append_images=[moving])
    return pictures


def _dicom(folder: Path) -> bytes:
    return write_dicom(folder / "a.dcm", IMAGE, "1.2.3").read_bytes()


def _mask(path: Path) -> None:
    for _ in open_mask(path).strips():
        pass


def _masks(folder: Path) -> dict[str, bytes]:
    body = io.BytesIO()
    np.save(body, LABELS)
    tifffile.imwrite(folder / "m.tif", LABELS, compression="zlib", photometric="minisblack")
    Image.fromarray(LABELS).save(folder / "m.gif")
    return {
        "m.npy": body.getvalue(),
        "m.png": encode_png(LABELS),
        "m.gif": (folder / "m.gif").read_bytes(),
        "m.tif": (folder / "m.tif").read_bytes(),
    }


def _label_map(path: Path) -> None:
    with LabelMap(path) as labels:
        labels.whole()


def _label_maps(folder: Path) -> dict[str, bytes]:
    path = folder / "labels.tif"
    write_label_map(path, iter([LABELS]), 60, 40, 1.0)
    return {"labels.tif": path.read_bytes()}


def _annotation(path: Path) -> None:
    draw(path, CLASSES, slide=GEOMETRY, labels_origin="slide")


def _annotations(folder: Path) -> dict[str, bytes]:
    seeds = {}
    for kind in FORMATS:
        for suffix in kind.suffixes if kind.written else ():
            path = folder / f"{kind.name}{suffix}"
            write_annotation(path, kind.name, LABELS, 1.0, CLASSES, GEOMETRY)
            seeds[path.name] = path.read_bytes()
    return seeds


def _features(folder: Path) -> dict[str, bytes]:
    path = folder / "s1.h5"
    attributes: dict[str, Any] = {"patch_size": 64, "patch_size_level0": 64, "name": "s1"}
    with h5py.File(path, "w") as file:
        coords = file.create_dataset("coords", data=np.arange(32).reshape(16, 2) * 64)
        coords.attrs.update(attributes)
        file["features"] = np.ones((16, 5), np.float32)
    chunked = folder / "s2.h5"
    with h5py.File(chunked, "w") as file:
        file.create_dataset("coords", data=np.arange(32).reshape(16, 2) * 64, chunks=(4, 2))
        file.create_dataset(
            "features", data=np.ones((1, 16, 5), np.float16), chunks=(1, 4, 5), compression="gzip"
        )
    return {"s1.h5": path.read_bytes(), "s2.h5": chunked.read_bytes()}


RECIPE = b"""name: mine
size: 64
vae: {channels: [8, 16], latent_channels: 4, steps: 10}
denoiser:
  conditioning: regional
  channels: [32, 64]
  attention: [false, true]
  steps: 100
  learning_rate: 1.0e-4
"""
PIPELINE = b"""requests:
  - stage: embed
    cohort: c
    encoder: resnet50
  - stage: synthesize
    dataset: d
    model: m
    images: 40
    proportions: {tumor: 0.5, stroma: 0.5}
    seed: 3
"""
TABLES = {
    "slides.csv": b"slide,path,patient,mpp,split\na,a.svs,p1,0.5,train\nb,b.svs,p2,0.25,test\n",
    "semicolons.csv": "\ufeffslide;path;mpp\r\na;a.svs;0,5\r\n\"b;c\";b.svs;\r\n".encode(),
    "project.qpproj": json.dumps(
        {"images": [{"imageName": "a.svs", "entryID": 1, "serverBuilder": {
            "builderType": "uri", "uri": "file:/slides/a.svs"}}], "version": "0.4"}
    ).encode(),
}  # fmt: skip
RECORDS = {
    "request.json": json.dumps(
        {"stage": "toy", "request": {"name": "a"}, "submission": 1, "version": "1"}
    ).encode(),
    "plan.json": json.dumps({"phases": [[{"id": "a", "args": {}}], [{"id": "b"}]]}).encode(),
    "result.json": json.dumps({"state": "done", "result": {}, "failed": {}}).encode(),
}
BODIES = {
    "synthesize.json": b'{"dataset": "d", "model": "m", "images": 8, "seed": 1,'
    b' "exports": ["coco"], "proportions": {"tumor": 0.5}}',
    "embed.json": b'{"cohort": "c", "encoder": "e"}',
    "cluster.json": b'{"run": "r", "cohort": "c", "encoder": "e", "k": 4}',
    "train.json": b'{"model": "m", "version": "1", "regions": "r", "run": "m-1", "recipe": {'
    b'"name": "mine", "size": 64, "vae": {"channels": [8, 16], "latent_channels": 4, "steps": 10}, '
    b'"denoiser": {"channels": [32, 64], "attention": [false, true], "steps": 100}}}',
    "deploy.json": b'{"model": "m", "number": 1}',
    "evaluate.json": b'{"report": "r", "dataset": "d", "regions": "g"}',
    "ingest.json": b'{"cohort": "c", "slides": [{"slide": "s", "source": "slides/s/source.svs"}],'
    b' "regions": {"size": 64, "mpp": 0.5}, "classes": {"items": ['
    b'{"index": 0, "name": "background", "color": [0, 0, 0]},'
    b' {"index": 1, "name": "tumor", "color": [1, 2, 3]}]}}',
}


def _types(path: Path) -> None:
    store = DirectoryStore(path.parent / "store")
    store.put("clusters/r/types.yaml", path.read_bytes())
    read_types(store, "r", 4)


def _table(path: Path) -> None:
    find_by_table(path, [], None)


def _tile_table() -> bytes:
    row = {
        "slide": "s", "patient": None, "split": "train", "image": "tiles/a.png",
        "image_sha256": "0" * 64, "mask": "tiles/m.png", "mask_sha256": "0" * 64, "label": 1,
        "mpp": 0.5,
    }  # fmt: skip
    return table_bytes(pa.Table.from_pylist([row], schema=TILE_COLUMNS))


def _tiles(path: Path) -> None:
    tile_tables.parse(path, "tiles.parquet")


def _record(path: Path) -> None:
    store = DirectoryStore(path.parent / "store")
    for name, data in RECORDS.items():
        store.put(f"jobs/toy-1/{name}", path.read_bytes() if name == path.name else data)
    Snapshot(store, "toy-1").status()


def _key(path: Path) -> None:
    key = check_key(path.read_bytes().decode("utf-8", "surrogateescape"))
    inside = (path.parent / "store" / key).resolve()
    if "\0" not in key and not inside.is_relative_to((path.parent / "store").resolve()):
        raise AssertionError(f"{key!r} climbs out of the store")


def _request(path: Path) -> None:
    REQUESTS[path.stem].model_validate_json(path.read_bytes())


def _image_body() -> bytes:
    import base64

    png = base64.b64encode(encode_png(LABELS)).decode()
    return json.dumps({"model": "m", "labels": png, "seed": 1, "crops": []}).encode()


__all__ = ["Target", "make_targets"]
