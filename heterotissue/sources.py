"""Prepare slides, tiles and annotations on disk for an ingest request."""

from __future__ import annotations

import re
from pathlib import Path

import openslide
import pyarrow as pa

from shared.contracts.annotations import ANNOTATION_NAMES
from shared.contracts.base import Classes, Split
from shared.contracts.ingest import TILE_COLUMNS, SlideSource, slide_key, tiles_key
from shared.errors import InputError
from shared.storage import Store
from shared.storage.formats import table_bytes

SLIDES = {
    ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".vms", ".vmu", ".scn", ".bif", ".svslide",
    ".dcm", ".png", ".jpg", ".jpeg", ".czi",
}  # fmt: skip
TILES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp"}
TILE_MASKS = ("{}.mask.png", "{}_mask.png", "{}_mask.tif", "{}_mask.tiff", "{}_anno.bmp")
SPLITS: dict[str, Split] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def find_slides(paths: list[Path]) -> list[Path]:
    """List slide files: the given files, and the slides directly in the given folders.

    Raises:
        InputError: a path does not exist, or `paths` hold no slide.
    """
    slides: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(item for item in path.iterdir() if item.suffix.lower() in SLIDES)
            slides += [item for item in inside if not item.stem.endswith("_mask")]
        elif path.is_file():
            slides.append(path)
        else:
            raise InputError(f"{path} is not there")
    if not slides:
        raise InputError(f"no slide in {', '.join(map(str, paths))}")
    return slides


def find_labels(slide: Path, folder: Path | None) -> Path | None:
    """Find the annotation of a slide by its file name; return None if there is none.

    Args:
        slide: main file of the slide.
        folder: folder of the annotations; None: the slide's folder.
    """
    for pattern in ANNOTATION_NAMES:
        path = (folder or slide.parent) / pattern.format(slide.stem)
        if path.is_file():
            return path
    return None


def slide_name(path: Path) -> str:
    """Turn a slide's file name, without its suffix, into a name that the store accepts."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")
    return name[:120] or "slide"


def tile_table(
    store: Store,
    cohort: str,
    folder: Path,
    *,
    masks: Path | None,
    classes: Classes,
    slide_pattern: str | None,
    mpp: float,
) -> str:
    """Put a table of a folder's tiles and masks into the store; the files stay in place.

    A folder named train, val or test above a tile gives the tile's split. In a folder that has
    the name of a class, the foreground of a mask is that class; elsewhere masks hold class
    indices (or, for two classes, 0 and 255).

    Args:
        store: receives the table.
        cohort: name of the cohort.
        folder: folder of the tiles, which may be in subfolders.
        masks: folder of the masks, with the same subfolders; None: masks are beside the tiles.
        classes: classes of the masks.
        slide_pattern: regular expression that is searched in a tile's file name; its first group
            is the name of the tile's slide or patient. None: every tile is a slide of its own.
        mpp: µm per pixel of the tiles.

    Returns:
        Key of the table, for `IngestRequest.tiles`.

    Raises:
        InputError: `folder` is missing or has no tile, a tile has no mask, or a file name does
            not match `slide_pattern`.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    rows = []
    for path in sorted(item for item in folder.rglob("*") if item.suffix.lower() in TILES):
        if any(path.name.endswith(pattern.format("")) for pattern in TILE_MASKS):
            continue
        parts = path.relative_to(folder).parent.parts
        beside = masks.joinpath(*parts) if masks else path.parent
        names = [pattern.format(path.stem) for pattern in TILE_MASKS]
        names += [f"{path.stem}.png", path.name] if masks else []
        mask = next((beside / name for name in names if (beside / name).is_file()), None)
        if mask is None:
            raise InputError(f"{path} has no mask: looked in {beside} for {', '.join(names)}")
        labels = [classes.index(part) for part in parts if part in classes.names]
        match = re.search(slide_pattern, path.name) if slide_pattern else None
        if slide_pattern and (match is None or not match.groups() or not match[1]):
            raise InputError(
                f"{path.name} does not fit the pattern {slide_pattern!r}: its first group in "
                "(brackets) must be the slide's or patient's name"
            )
        rows.append(
            {
                "slide": slide_name(Path(match[1])) if match else slide_name(path),
                "split": next((SPLITS[part.lower()] for part in parts if part.lower() in SPLITS),
                              None),
                "image": str(path.resolve()),
                "mask": str(mask.resolve()),
                "label": labels[-1] if labels else None,
                "mpp": mpp,
            }
        )  # fmt: skip
    if not rows:
        raise InputError(f"no tile in {folder}")
    store.put(tiles_key(cohort), table_bytes(pa.Table.from_pylist(rows, schema=TILE_COLUMNS)))
    return tiles_key(cohort)


def companions(path: Path) -> list[Path]:
    """List the other files of a slide that consists of several files (MIRAX, DICOM).

    Args:
        path: the slide's main file.
    """
    if path.suffix.lower() == ".mrxs":
        folder = path.with_suffix("")
        return sorted(item for item in folder.rglob("*") if item.is_file())
    if path.suffix.lower() == ".dcm":
        series = _series(path)
        others = sorted(item for item in path.parent.glob("*.dcm") if item != path)
        return [item for item in others if series and _series(item) == series]
    return []


def _series(path: Path) -> str | None:
    try:
        with openslide.OpenSlide(path) as slide:
            return slide.properties.get("dicom.SeriesInstanceUID")
    except (openslide.OpenSlideError, OSError):
        return None


def slide_sources(
    store: Store,
    slides: list[Path],
    *,
    labels: Path | None = None,
    use_labels: bool = True,
    mpp: float | None = None,
    in_place: bool = False,
) -> tuple[SlideSource, ...]:
    """Put slides and annotations into the store, and describe them for an ingest request.

    Args:
        store: receives the files.
        slides: main files of the slides.
        labels: folder of the annotations; None: annotations are beside the slides.
        use_labels: whether to look for annotations.
        mpp: µm per pixel of slides whose files state no resolution.
        in_place: leave the files in their folders, and refer to them by their absolute paths.

    Raises:
        InputError: two slides would have the same name.
    """
    names: dict[str, Path] = {}
    sources = []
    for path in slides:
        name = slide_name(path)
        if name in names:
            raise InputError(f"{names[name]} and {path} would both be named {name!r}: rename one")
        names[name] = path
        annotation = find_labels(path, labels) if use_labels else None
        sources.append(
            SlideSource(
                slide=name,
                source=_keep(store, name, path, "source", in_place),
                labels=_keep(store, name, annotation, "annotation", in_place)
                if annotation
                else None,
                mpp=mpp,
            )
        )
    return tuple(sources)


def _keep(store: Store, name: str, path: Path, kind: str, in_place: bool) -> str:
    if in_place:
        return str(path.resolve())
    for item in [path, *(companions(path) if kind == "source" else [])]:
        key = slide_key(name, f"{kind}/{item.relative_to(path.parent).as_posix()}")
        if not store.exists(key) or store.size(key) != item.stat().st_size:
            store.put_file(key, item)
    return slide_key(name, f"{kind}/{path.name}")
