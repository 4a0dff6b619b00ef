"""What a copy of an OME-Zarr folder keeps: the chunks of its largest image, and where they lie."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shared.errors import InputError
from shared.imaging.zarr_slide import UNITS, zarr_files
from shared.storage import Patch

LEVEL = re.compile(r"(?:s|scale|level|res|resolution|r|l)?[_-]?\d{1,3}")
"""Names of levels that stay; others may be names of people."""

KINDS, TRANSFORMATIONS = {"space", "time", "channel"}, {"scale", "translation"}

ARRAY = {
    "zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding",
    "fill_value", "codecs", "storage_transformers", "chunks", "dtype", "compressor", "order",
    "filters", "dimension_separator",
}  # fmt: skip
"""Members of an array's metadata that stay."""

MAX_METADATA = 16 << 20
"""Largest file of metadata, bytes."""


def in_zarr(folder: Path) -> dict[str, list[Patch]]:
    """Return the files of an OME-Zarr folder that a copy has, and how they differ.

    Returns:
        Path of a file, relative to the folder → its patches.

    Raises:
        InputError: it is not certain what its largest image is, or its metadata is damaged.
        OSError: a file cannot be read.
    """
    try:
        return dict(_files(folder))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"its metadata is damaged ({error})") from error


def _files(folder: Path) -> Iterator[tuple[str, list[Patch]]]:
    if "multiscales" in _stated(folder):
        place = ""
    else:
        place = f"{_largest(folder)}/"
        yield from _group(folder, "", None)
    image = _stated(folder / place)["multiscales"][0]
    yield from _group(folder, place, _image(image))
    for level in image["datasets"]:
        if not LEVEL.fullmatch(str(level["path"])):
            raise InputError("its levels have names that may be those of people")
        yield from _array(folder, f"{place}{level['path']}/")


def _largest(folder: Path) -> str:
    """Return the name of the largest of several images, of which others may be labels."""
    sizes = {}
    for below in folder.iterdir():
        if below.name.isdigit() and below.is_dir() and "multiscales" in (own := _stated(below)):
            first = own["multiscales"][0]
            names = [axis["name"] if isinstance(axis, dict) else axis for axis in first["axes"]]
            shape = _array_metadata(below / str(first["datasets"][0]["path"]))["shape"]
            sides = dict(zip(names, shape, strict=True))
            sizes[below.name] = int(sides["x"]) * int(sides["y"])
    best = [name for name, size in sizes.items() if size == max(sizes.values())]
    if len(best) != 1:
        raise InputError("it has no image that is larger than the others")
    return best[0]


def _read(path: Path) -> Any:
    if path.stat().st_size > MAX_METADATA:
        raise InputError(f"its {path.name} is too large")
    return json.loads(path.read_bytes())


def _stated(group: Path) -> dict[str, Any]:
    """Return what a group states of its images."""
    if (group / "zarr.json").is_file():
        attributes = _read(group / "zarr.json").get("attributes", {})
    else:
        attributes = _read(group / ".zattrs") if (group / ".zattrs").is_file() else {}
    stated = attributes.get("ome", attributes)
    return stated if isinstance(stated, dict) else {}


def _group(
    folder: Path, place: str, image: dict[str, Any] | None
) -> Iterator[tuple[str, list[Patch]]]:
    """Yield the metadata of a group: that it is one, and its image."""
    if (folder / place / "zarr.json").is_file():
        group: dict[str, Any] = {"zarr_format": 3, "node_type": "group"}
        group["attributes"] = {"ome": {"multiscales": [image]}} if image else {}
        yield _written(folder, f"{place}zarr.json", group)
    else:
        yield _written(folder, f"{place}.zgroup", {"zarr_format": 2})
        if image is not None:
            yield _written(folder, f"{place}.zattrs", {"multiscales": [image]})


def _image(stated: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {"axes": [_axis(axis) for axis in stated["axes"]]}
    kept["datasets"] = [
        {"path": str(level["path"])} | _transformations(level) for level in stated["datasets"]
    ]
    return kept | _transformations(stated)


def _axis(axis: Any) -> Any:
    if not isinstance(axis, dict):
        return _known(axis, set("tczyx"))
    kept = {"name": _known(axis["name"], set("tczyx"))}
    known = {"type": KINDS, "unit": UNITS.keys()}
    return kept | {key: axis[key] for key, words in known.items() if axis.get(key) in words}


def _known(word: Any, words: set[str]) -> str:
    if word not in words:
        raise InputError("its image has axes of unknown names")
    return str(word)


def _transformations(stated: dict[str, Any]) -> dict[str, Any]:
    steps = [
        {"type": step["type"], step["type"]: [_number(value) for value in step[step["type"]]]}
        for step in stated.get("coordinateTransformations", ())
        if step.get("type") in TRANSFORMATIONS
    ]
    return {"coordinateTransformations": steps} if steps else {}


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError("its image has a scale that is no number")
    return value


def _array_metadata(array: Path) -> dict[str, Any]:
    name = "zarr.json" if (array / "zarr.json").is_file() else ".zarray"
    return dict(_read(array / name))


def _array(folder: Path, place: str) -> Iterator[tuple[str, list[Patch]]]:
    """Yield the files of a level: its metadata, and the chunks of its grid."""
    array = folder / place
    stated = _array_metadata(array)
    name = "zarr.json" if (array / "zarr.json").is_file() else ".zarray"
    yield _written(folder, f"{place}{name}", {key: stated[key] for key in stated if key in ARRAY})
    chunk = stated["chunks"] if name == ".zarray" else (
        stated["chunk_grid"]["configuration"]["chunk_shape"])  # fmt: skip
    grid = [math.ceil(side / own) for side, own in zip(stated["shape"], chunk, strict=True)]
    for file in zarr_files(array):
        if _is_chunk(file, grid):
            yield f"{place}{file}", []


def _is_chunk(name: str, grid: Sequence[int]) -> bool:
    numbers = re.split(r"[./]", re.sub(r"^c[./]", "", name))
    return len(numbers) == len(grid) and all(
        part.isascii() and part.isdecimal() and str(int(part)) == part and int(part) < count
        for part, count in zip(numbers, grid, strict=True)
    )


def _written(folder: Path, name: str, kept: dict[str, Any]) -> tuple[str, list[Patch]]:
    """Return the patch that rewrites a file of metadata, as long as it was."""
    before = (folder / name).read_bytes()
    new = json.dumps(kept, separators=(",", ":"), ensure_ascii=False).encode()
    if len(new) > len(before):
        raise InputError(f"its {name} has no room for what readers need of it")
    new = new.ljust(len(before))
    return name, [Patch(0, new)] if new != before else []
