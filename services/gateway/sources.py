"""Slides and annotations on disk → sources that ingest can read."""

from __future__ import annotations

import re
from pathlib import Path

import openslide

from shared.contracts.ingest import SlideSource, slide_key
from shared.errors import InputError
from shared.storage import ObjectStore

SLIDES = {
    ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".vms", ".vmu", ".scn", ".bif", ".svslide",
    ".dcm", ".png", ".jpg", ".jpeg", ".czi",
}  # fmt: skip
LABELS = ("{}.geojson", "{}.xml", "{}_mask.tiff", "{}_mask.tif", "{}_mask.png", "{}.json")


def find_slides(paths: list[Path]) -> list[Path]:
    """List slide files: those given, and those in given folders (not below them).

    Raises:
        InputError: a path is missing, or there is no slide at all.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(item for item in path.iterdir() if item.suffix.lower() in SLIDES)
            found += [item for item in inside if not item.stem.endswith("_mask")]
        elif path.is_file():
            found.append(path)
        else:
            raise InputError(f"{path} is not there")
    if not found:
        raise InputError(f"no slide in {', '.join(map(str, paths))}")
    return found


def find_labels(slide: Path, folder: Path | None) -> Path | None:
    """Find a slide's annotation by its name, beside the slide or in `folder`."""
    for pattern in LABELS:
        path = (folder or slide.parent) / pattern.format(slide.stem)
        if path.is_file():
            return path
    return None


def slide_name(path: Path) -> str:
    """Make a store-safe name of a slide's file name."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")
    return name[:120] or "slide"


def companions(path: Path) -> list[Path]:
    """List the files that a slide consists of besides its main file."""
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


def prepare(
    store: ObjectStore,
    slides: list[Path],
    *,
    labels: Path | None,
    use_labels: bool,
    mpp: float | None,
    in_place: bool,
) -> tuple[SlideSource, ...]:
    """Put slides and annotations into the store (or leave them in place) and name them.

    Args:
        store: where to.
        slides: main files.
        labels: folder of the annotations; beside the slides if not given.
        use_labels: whether annotations are looked for.
        mpp: for slides that state no resolution.
        in_place: refer to the files where they are, instead of copying them.

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


def _keep(store: ObjectStore, name: str, path: Path, kind: str, in_place: bool) -> str:
    if in_place:
        return str(path.resolve())
    for item in [path, *(companions(path) if kind == "source" else [])]:
        key = slide_key(name, f"{kind}/{item.relative_to(path.parent).as_posix()}")
        if not store.exists(key) or store.size(key) != item.stat().st_size:
            store.put_file(key, item)
    return slide_key(name, f"{kind}/{path.name}")
