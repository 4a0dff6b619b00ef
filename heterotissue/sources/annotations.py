"""Finding the annotation of a slide, or the mask of a tile, by its file name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from heterotissue.sources.records import Found, SlideEntry, composed, shown, some
from shared.errors import InputError

JPEGS = (".jpg", ".jpeg", ".jfif", ".jpe")

MASK_SUFFIXES = (
    ".ome.tiff", ".ome.tif", ".tiff", ".tif", ".png", ".npy", ".bmp", *JPEGS, ".webp", ".gif",
)  # fmt: skip

JSON = (".json", ".json.gz")
"""Suffixes that any tool's files may have, which are often no annotations."""

PICTURES = {".png", *JPEGS, ".bmp", ".webp", ".gif"}
"""Suffixes of pictures that no scanner writes."""

LABELED_BY_PNG = (*JPEGS, ".tif", ".tiff")
"""Suffixes of tiles whose labels QuPath exports as PNGs of their very name."""


def name_endings(*words: str) -> tuple[str, ...]:
    """Return what ends a file's name, before its suffix, if one of the words does."""
    return tuple(sign + word for word in words for sign in "_-.")


MASK_ENDINGS = name_endings(
    "mask", "masks", "labels", "labelled", "labeled", "labelmap", "anno", "annotation",
    "annotations", "seg", "segmentation", "groundtruth", "ground_truth",
)  # fmt: skip
"""Endings of a label image's name, before its suffix."""

GT_ENDINGS = name_endings("gt")
"""Endings that mean a label image only beside a slide: they may be someone's initials."""

LABEL_ENDINGS = name_endings("label")
"""Endings that mean a label image beside a picture, but a photograph of the glass beside a scan."""

MASKS = tuple(e + suffix for e in (*MASK_ENDINGS, *GT_ENDINGS) for suffix in MASK_SUFFIXES)

PICTURE_MASKS = tuple(e + suffix for e in LABEL_ENDINGS for suffix in MASK_SUFFIXES)

ENDINGS = (
    ".geojson", ".geojson.gz", ".xml", ".annotations", ".ndpa", *MASKS, ".json", ".json.gz",
)  # fmt: skip
"""What follows a slide's name, with or without its suffix, in the name of its annotation.

Case does not matter. Where a slide has several annotations, the first of this list is taken.
"""


def stem_of(path: Path) -> str:
    """Return a file's name without its suffix, of which '.ome' is a part."""
    return path.stem[: -len(".ome")] if path.stem.lower().endswith(".ome") else path.stem


class Labels:
    """The annotations of slides or tiles: beside them, or in a folder of their own.

    Args:
        folder: folder of the annotations, which may lie in subfolders; None: beside the slides.
        below: paths of all slides or tiles below the folder that was searched.

    Attributes:
        foreign: annotations of a file's name that were not taken, because they lie where those of
            other files are.

    Raises:
        InputError: `folder` is no folder.
    """

    def __init__(self, folder: Path | None, below: Iterable[Path]) -> None:
        if folder is not None and not folder.is_dir():
            raise InputError(f"the folder of annotations {folder} is not a folder")
        self.folder = folder
        self.foreign: dict[Path, list[Path]] = {}
        self._stems: dict[Path, set[str]] = {}
        for path in below:
            self._stems.setdefault(path.parent, set()).add(stem_of(path).lower())
        self._folders = {place for path in self._stems for place in (path, *path.parents)}
        self._folders -= {Path()}
        self._holding: set[Path] = set()
        self._beside: dict[Path, dict[str, list[Path]]] = {}

    def of(
        self,
        path: Path,
        below: Path,
        endings: tuple[str, ...] = ENDINGS,
        labeled_by_png: tuple[str, ...] = JPEGS,
    ) -> list[Path]:
        """List the annotations of one file, the one to take first.

        Args:
            path: the slide or tile.
            below: its path below the folder that was searched. In a folder of annotations, that
                in the same subfolder is taken; in another one only if no other slide's or tile's
                annotations are there, and none are in the same.
            endings: what may follow the file's name. In a folder of annotations, an image may
                also have the very name of the slide; if that folder is the file's own, only a PNG.
            labeled_by_png: suffixes of the files to which such a PNG belongs.
        """
        apart = self.folder is not None and self.folder.resolve() != path.resolve().parent
        place = self.folder or path.parent
        if place not in self._beside:
            self._beside[place] = _names(place, deep=self.folder is not None)
            self._holding |= {item.parent for x in self._beside[place].values() for item in x}
        names = self._beside[place]
        found: list[Path] = []
        same_folder = self.folder is not None and not apart
        by_png = same_folder and path.suffix.lower() in labeled_by_png
        for name in _candidates(path, endings, apart, by_png):
            if same := names.get(composed(name).lower()):
                items = [item for item in same if item != path]
                found += [item for item in items if item.name == name] or items
        unique = list(dict.fromkeys(found))
        if self.folder is None:
            return unique
        # That which has the very name of another file is that file's.
        others = self._stems.get(below.parent, set()) - {stem_of(path).lower(), path.name.lower()}
        unique = [item for item in unique if stem_of(item).lower() not in others]
        own = self.folder / below.parent
        if near := [item for item in unique if item.parent == own]:
            return near
        mirrored = own != self.folder and own in self._holding
        above = [item for item in unique if self._places(item) & set(below.parents) - {Path()}]
        if above and not mirrored:
            return above
        doubtful = mirrored or any(self._places(item) & self._folders for item in unique)
        if unique and doubtful and len({item.name for item in unique}) == len(unique):
            self.foreign[below] = unique
            return []
        return unique

    def _places(self, item: Path) -> set[Path]:
        """Return the subfolders that an annotation lies in."""
        return set(item.relative_to(self.folder or Path()).parents)

    def apart(self, below: Path) -> str:
        """Tell which annotations were not taken, and what to do; nothing if there are none."""
        if not (foreign := self.foreign.get(below)):
            return ""
        return (
            f": {some(map(shown, foreign), 2)} may be of another folder's {shown(below.name)}, and "
            "is not taken. Put annotations into the same subfolders as slides or tiles"
        )


def _candidates(path: Path, endings: tuple[str, ...], apart: bool, by_png: bool) -> Iterator[str]:
    stems = dict.fromkeys((path.stem, path.name, stem_of(path)))
    of_picture = PICTURE_MASKS if path.suffix.lower() in PICTURES else ()
    for ending in (*endings, *of_picture):
        for stem in stems:
            yield stem + ending
    if apart:
        for suffix in (".tiff", ".tif", ".png", ".npy", ".bmp", path.suffix):
            yield path.stem + suffix
    elif by_png:
        yield f"{path.stem}.png"


def _names(folder: Path, deep: bool) -> dict[str, list[Path]]:
    """Map the names, in small letters, of a folder's files to their paths."""
    names: dict[str, list[Path]] = {}
    try:
        items = sorted(folder.rglob("*") if deep else folder.iterdir())
    except OSError:
        return names
    for item in items:
        if not item.name.startswith(".") and item.is_file():
            names.setdefault(composed(item.name).lower(), []).append(item)
    return names


def _held(labels: list[Path]) -> tuple[list[Path], list[str]]:
    """Leave out files that have the name of an annotation, but hold none, as far as others do.

    A file is looked into if another one follows it, or if it is JSON, which any tool writes. What
    is left out for no other, but JSON of no known format, is kept: ingest says what is wrong.

    Returns:
        The annotations, the one to take first, and names of the files before it, with the reason.
    """
    from services.ingest.annotations.sidecars import content_of

    passed_over: dict[Path, str] = {}
    kept = []
    for place, path in enumerate(labels):
        is_json = path.name.lower().endswith(JSON)
        follows = place < len(labels) - 1
        content = content_of(path) if follows or is_json else None
        if content is None or content.kind == "annotation":
            kept = labels[place:]
            break
        passed_over[path] = f"{shown(path.name)}, which {content.why}"
        if content.kind != "foreign" or not is_json:
            kept.append(path)
    return kept, [text for path, text in passed_over.items() if path not in kept]


def _without_shared(found: Found, slides: list[SlideEntry]) -> list[SlideEntry]:
    """Refuse slides that would share one annotation, because it is of only one of them."""
    count = Counter(entry.labels for entry in slides)
    del count[None]
    for entry in slides:
        if entry.labels and count[entry.labels] > 1:
            sharing = [other for other in slides if other.labels == entry.labels]
            found.refuse(
                entry.path,
                f"its annotation {shown(entry.labels.name)} may be that of any of "
                f"{some(shown(other.below) for other in sharing)}: give each its own, such as "
                f"{shown(sharing[0].path.name)}.geojson, put annotations into the same subfolders "
                "as slides, or give a table",
            )
    return [entry for entry in slides if count[entry.labels] <= 1]


def _strays(slides: list[SlideEntry], folder: Path) -> list[SlideEntry]:
    """List what was taken for slides in a folder of annotations of slides elsewhere."""
    place = folder.resolve()
    inside = [entry for entry in slides if entry.path.resolve().is_relative_to(place)]
    apart = any(entry.labels and entry not in inside for entry in slides)
    return [entry for entry in inside if not entry.labels] if apart else []


def add_labels(found: Found, folder: Path | None, wanted: bool) -> None:
    """Find the annotation of every slide that has none given, and say what was found.

    Args:
        found: the slides; `labels` is filled in, and slides whose annotation is not clear are
            refused.
        folder: folder of the annotations; None: beside the slides.
        wanted: whether annotations are read. If not, they are only mentioned.

    Raises:
        InputError: `folder` holds no annotation of any slide.
    """
    search = Labels(folder, (entry.below for entry in found.slides))
    slides: list[SlideEntry] = []
    several: list[str] = []
    sidecars: list[str] = []
    for entry in found.slides:
        labels = [entry.labels] if entry.labels else search.of(entry.path, entry.below)
        if folder is not None and len(labels) > 1 and labels[0].name == labels[1].name:
            found.refuse(
                entry.path,
                f"has several annotations of one name: {some(map(shown, labels))}. Keep one, or "
                "name it in a table of slides",
            )
            continue
        if wanted and not entry.labels:
            labels, passed_over = _held(labels)
            name = shown(labels[0].name) if labels else "none"
            sidecars += [f"{shown(entry.path.name)}: {name}, not {text}" for text in passed_over]
        if len(labels) > 1:
            several.append(f"{shown(entry.path.name)}: {shown(labels[0].name)}")
        slides.append(replace(entry, labels=labels[0] if labels else None))
    taken = {entry.labels for entry in slides}
    if masks := [entry for entry in slides if entry.path in taken]:
        names = some(shown(entry.below) for entry in masks)
        found.notes.append(f"{names}: annotations of slides, so taken for no slides")
        slides = [entry for entry in slides if entry.path not in taken]
    if folder is not None and (strays := _strays(slides, folder)):
        names = some(shown(entry.below) for entry in strays)
        found.notes.append(
            f"{names}: in the folder of annotations, but of no slide's name, so taken for no slides"
        )
        slides = [entry for entry in slides if entry not in strays]
    slides = _without_shared(found, slides)
    with_labels = [entry for entry in slides if entry.labels]
    without = [shown(entry.path.name) for entry in slides if not entry.labels]
    if folder is not None and slides and not with_labels:
        example = slides[0].path.stem
        raise InputError(
            f"{folder} holds no annotation of any slide: looked for {example}.geojson, "
            f"{example}.xml, {example}_mask.png and similar names{search.apart(slides[0].below)}"
        )
    if not wanted:
        if with_labels:
            names = some(shown(entry.labels.name) for entry in with_labels if entry.labels)
            found.notes.append(
                f"annotations of {len(with_labels)} slides are not read ({names}): give their "
                "classes, by --classes, to read them"
            )
        slides = [replace(entry, labels=None) for entry in slides]
    else:
        if sidecars:
            found.notes.append(
                f"{len(sidecars)} files have the name of an annotation, but hold none; taken "
                f"instead: {some(sidecars)}"
            )
        if several:
            found.notes.append(
                f"{len(several)} slides have several annotations; taken: {some(several)}"
            )
        if without:
            found.notes.append(
                f"no annotation of {len(without)} of {len(slides)} slides was found: "
                f"{some(without, 20)}"
            )
        found.notes += [
            f"{shown(below)} has no annotation{search.apart(below)}" for below in search.foreign
        ][:20]
    found.slides = slides
