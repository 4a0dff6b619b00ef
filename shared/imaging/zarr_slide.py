"""OME-Zarr: a folder of chunks with a pyramid of one brightfield image (OME-NGFF 0.4 and 0.5)."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from shared.arrays import UInt8
from shared.errors import InputError, quoted
from shared.imaging.channels import check_rgb
from shared.imaging.pictures import MAX_PLAIN_PIXELS
from shared.imaging.tiled import Level, TiledSlide, needs_extra

MARKS = ("zarr.json", ".zgroup", ".zattrs")
"""Files of which a Zarr group has at least one, in format 3 or 2."""

CODECS = {
    "bytes", "transpose", "sharding_indexed", "crc32c", "blosc", "zstd", "gzip", "zlib", "lz4",
    "lzma", "bz2", "shuffle", "delta", "crc32", "adler32", "fletcher32",
}  # fmt: skip
"""Codecs that are used; others, such as pickle, could run a stranger's code."""

UNITS = {
    "meter": 1e6, "centimeter": 1e4, "millimeter": 1e3, "micrometer": 1.0, "micron": 1.0,
    "nanometer": 1e-3, "picometer": 1e-6, "angstrom": 1e-4, "inch": 25400.0, "µm": 1.0, "um": 1.0,
}  # fmt: skip
"""Unit of length → µm."""


def is_zarr(path: Path) -> bool:
    """Say whether a path is the folder of a Zarr group."""
    try:
        return path.is_dir() and any((path / name).is_file() for name in MARKS)
    except OSError:  # a name that is too long
        return False


def zarr_files(path: Path) -> list[str]:
    """List the files of a Zarr group, relative to it; hidden ones that are not Zarr's are left out.

    Raises:
        OSError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    names = []
    for here, folders, files in os.walk(path, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(here).relative_to(path)
        kept = (name for name in files if not name.startswith(".") or name.startswith(".z"))
        names += [(below / name).as_posix() for name in kept]
    return sorted(names)


class ZarrSlide(TiledSlide):
    """The largest image of an OME-Zarr folder, uint8 RGB.

    Raises:
        InputError: the extra `zarr` is not installed, or the folder holds other than one colour
            image that is read.
    """

    def __init__(self, path: Path) -> None:
        try:
            import zarr
            from zarr.storage import LocalStore
        except ImportError as error:
            raise InputError(needs_extra(path, "an OME-Zarr folder", "zarr")) from error
        try:
            root = zarr.open_group(LocalStore(path, read_only=True), mode="r")
            images = [_Image(path, group, stated) for group, stated in _images(path, root)]
        except InputError:
            raise
        # Zarr raises errors of many kinds for damaged metadata.
        except Exception as error:
            raise InputError(
                f"{path.name} cannot be opened as OME-Zarr: {error}. It is damaged, "
                "incomplete, or compressed in a way that is not read"
            ) from error
        self._image = max(images, key=lambda image: image.levels[0].width * image.levels[0].height)
        super().__init__("ome-zarr", self._image.levels, self._image.mpp)

    def close(self) -> None:
        """Do nothing: chunks are opened one by one."""

    def read_tile(self, level: int, column: int, row: int) -> UInt8:
        """Decode the chunks of a tile."""
        return self._image.read(level, column, row)


def _images(path: Path, root: Any) -> list[tuple[Any, dict[str, Any]]]:
    """Return the groups with an image, and what each states of it; bioformats2raw has several."""
    stated = _stated(root)
    if "plate" in stated or "well" in stated:
        raise InputError(f"{path.name} holds the fields of a plate, not a slide")
    if "multiscales" in stated:
        _check_channels(path, stated)
        return [(root, stated["multiscales"][0])]
    groups = [group for name, group in root.groups() if name.isdigit()]
    found = [(group, _stated(group)) for group in groups]
    for _, own in found:
        _check_channels(path, own)
    images = [(group, own["multiscales"][0]) for group, own in found if "multiscales" in own]
    if not images:
        raise InputError(
            f"{path.name} is Zarr, but no OME-Zarr image: it states no 'multiscales'. Give the "
            "folder of the image"
        )
    return images


def _check_channels(path: Path, stated: dict[str, Any]) -> None:
    channels = stated.get("omero", {}).get("channels", [])
    if len(channels) == 3:
        names, colors = ([str(c.get(key, "")) for c in channels] for key in ("label", "color"))
        check_rgb(path, names, colors)


def _stated(group: Any) -> dict[str, Any]:
    attributes = dict(group.attrs)
    stated = attributes.get("ome", attributes)
    return stated if isinstance(stated, dict) else {}


class _Image:
    """One image: its levels, resolution and arrays."""

    def __init__(self, path: Path, group: Any, stated: dict[str, Any]) -> None:
        self._axes = [axis["name"] if isinstance(axis, dict) else axis for axis in stated["axes"]]
        axes, datasets = self._axes, stated["datasets"]
        if not {"y", "x"} <= set(axes) <= set("tczyx") or len(set(axes)) != len(axes):
            raise InputError(f"{path.name} has the axes {axes}, not those of one image (c, y, x)")
        self._arrays = [_array(path, group, str(part["path"])) for part in datasets]
        for array in self._arrays:
            self._check(path, array)
        self.levels = [self._level(path, array) for array in self._arrays]
        if any(later.width > self.levels[0].width for later in self.levels):
            raise InputError(f"{path.name} lists a level before a larger one")
        self.mpp = self._resolution(stated)

    def _check(self, path: Path, array: Any) -> None:
        if len(array.shape) != len(self._axes):
            raise InputError(f"{path.name}: {len(self._axes)} axes, but arrays of {array.shape}")
        sizes = dict(zip(self._axes, array.shape, strict=True))
        for axis, things in (("t", "times"), ("z", "planes of focus")):
            if sizes.get(axis, 1) != 1:
                raise InputError(f"{path.name} has {sizes[axis]} {things}: save one of them")
        if sizes.get("c", 1) != 3:
            raise InputError(
                f"{path.name} has {sizes.get('c', 1)} channels, not red, green and blue: only "
                "brightfield colour is read, no fluorescence"
            )
        if str(array.dtype) != "uint8":
            raise InputError(f"{path.name} holds {array.dtype}: only 8 bits per channel are read")

    def _level(self, path: Path, array: Any) -> Level:
        sizes = dict(zip(self._axes, array.shape, strict=True))
        chunk = dict(zip(self._axes, array.chunks, strict=True))
        if math.prod(array.chunks) > 3 * MAX_PLAIN_PIXELS:
            raise InputError(
                f"{path.name} stores {chunk['x']}×{chunk['y']} px in one chunk; at most "
                f"{MAX_PLAIN_PIXELS // 10**6} megapixels are decoded at once: save smaller chunks"
            )
        columns, rows = min(chunk["x"], sizes["x"]), min(chunk["y"], sizes["y"])
        return Level(sizes["x"], sizes["y"], columns, rows)

    def _resolution(self, stated: dict[str, Any]) -> tuple[float, float] | None:
        """Return µm per pixel of level 0 along x and y; None if it has no scale or no unit."""
        steps = [*stated["datasets"][0].get("coordinateTransformations", ())]
        steps += stated.get("coordinateTransformations", ())
        scales = [step["scale"] for step in steps if step.get("type") == "scale"]
        units = {
            axis["name"]: UNITS.get(str(axis.get("unit")))
            for axis in stated["axes"]
            if isinstance(axis, dict)
        }
        lengths = []
        for axis in "xy":
            unit = units.get(axis)
            if unit is None or not scales:
                return None
            place = self._axes.index(axis)
            lengths.append(unit * math.prod(float(scale[place]) for scale in scales))
        return (lengths[0], lengths[1]) if min(lengths) > 0 else None

    def read(self, level: int, column: int, row: int) -> UInt8:
        own = self.levels[level]
        parts = {
            "x": slice(column * own.columns, min((column + 1) * own.columns, own.width)),
            "y": slice(row * own.rows, min((row + 1) * own.rows, own.height)),
            "c": slice(None),
        }
        piece = np.asarray(self._arrays[level][tuple(parts.get(axis, 0) for axis in self._axes)])
        left = [axis for axis in self._axes if axis in parts]
        return np.ascontiguousarray(piece.transpose([left.index(axis) for axis in "yxc"]))


def _array(path: Path, group: Any, name: str) -> Any:
    """Open an array of a group, which must lie in it and use known codecs."""
    if not name or any(part in {"", ".", ".."} for part in name.split("/")) or "\\" in name:
        raise InputError(f"{path.name} names a level outside of its folder: {quoted(name)}")
    array = group[name]
    if unknown := _codecs(array.metadata.to_dict()) - CODECS:
        raise InputError(
            f"{path.name} is compressed by {', '.join(sorted(unknown))}, which is not read: save "
            "it with Blosc, Zstandard or gzip"
        )
    return array


def _codecs(metadata: dict[str, Any]) -> set[str]:
    """Return the names of the codecs in the metadata of an array, nested ones too."""
    stated = [metadata.get("compressor"), *(metadata.get("filters") or ())]
    stated += [*(metadata.get("codecs") or ()), *(metadata.get("index_codecs") or ())]
    names: set[str] = set()
    for codec in filter(None, stated):
        facts = codec if isinstance(codec, dict) else codec.to_dict()
        names.add(str(facts.get("name", facts.get("id"))).removeprefix("numcodecs."))
        inner = facts.get("configuration")
        names |= _codecs(inner) if isinstance(inner, dict) else set()
    return names
