"""Finding slides: files and folders → one entry for each slide, and what was left out."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from heterotissue.sources.annotations import (
    ENDINGS,
    GT_ENDINGS,
    JPEGS,
    LABEL_ENDINGS,
    MASK_ENDINGS,
    MASK_SUFFIXES,
    PICTURES,
    name_endings,
    stem_of,
)
from heterotissue.sources.dicom import (
    Instance,
    fault_elsewhere,
    fault_of,
    is_dicom,
    main_first,
    read_instance,
)
from heterotissue.sources.records import Found, SlideEntry, explain, shown, some
from heterotissue.sources.unread import why_not_taken, why_unread, why_unreadable
from shared.errors import InputError
from shared.imaging.companions import HAMAMATSU, MIRAX, companions, named_parts
from shared.imaging.zarr_slide import is_zarr, zarr_files

SLIDES = {
    ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".vms", ".vmu", ".scn", ".bif", ".svslide",
    ".dcm", ".dicom", ".png", *JPEGS, ".czi", ".qptiff", ".btf", ".bmp", ".webp", ".isyntax",
    ".zarr",
}  # fmt: skip

UNFINISHED = {
    ".part", ".partial", ".crdownload", ".download", ".opdownload", ".filepart", ".aria2",
    ".tmp", ".temp", ".swp", ".bak", ".!ut",
}  # fmt: skip

PACKED = {".zip", ".gz", ".tar", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".zst"}

OVERVIEWS = name_endings("thumbnail", "thumb", "macro", "label", "overview", "preview")
"""Endings of the names of small pictures that are kept beside a slide."""

PICTURE_FOLDERS = {
    "mask", "masks", "stitch", "stitches", "thumb", "thumbs", "thumbnail", "thumbnails", "macro",
    "macros", "label", "labels", "overview", "overviews", "preview", "previews", "contours",
    "visualization", "visualizations", "heatmap", "heatmaps", "segmentation", "segmentations",
}  # fmt: skip
"""Names of folders in which CLAM, TRIDENT and others keep pictures of slides."""

MAX_FILES = 100_000
"""Largest number of files of an OME-Zarr slide."""

NO_SLIDE = {".txt", ".md", ".pdf", ".json", ".xlsx", ".xls", ".log", ".yaml", ".yml", ".ini",
            ".md5", ".sha256", ".html", ".docx", ".py", ".parcel"}  # fmt: skip


class Finder:
    """Collects slides from files and folders.

    Args:
        leave_out: folder that is not searched: that of the store.

    Attributes:
        found: what was found so far.
    """

    def __init__(self, leave_out: Path | None = None) -> None:
        self.found = Found()
        self._leave_out = leave_out
        self._taken: dict[Path, Path] = {}
        self._series: dict[str, list[Instance]] = {}
        self._instances: dict[Path, list[Instance]] = {}
        self._skipped: dict[str, list[str]] = {}

    def add(self, path: Path) -> None:
        """Add a slide's file or OME-Zarr folder, or all slides of a folder and those below it."""
        if path.is_dir() and not is_zarr(path):
            self._add_folder(path)
        else:
            self._add_all([path], path.parent, given=True)

    def finish(self) -> Found:
        """Return what was found, with notes on the files that were skipped."""
        self._leave_out_pictures()
        for reason, names in self._skipped.items():
            self.found.notes.append(f"skipped {len(names)} {reason}: {some(names)}")
        self._skipped = {}
        return self.found

    def _skip(self, path: Path, reason: str) -> None:
        self._skipped.setdefault(reason, []).append(shown(path.name))

    def _leave_out_pictures(self) -> None:
        """Skip pictures that have the name of a slide in another format: they are made of it.

        They lie beside the slide, or in a folder that is named after what such pictures show.
        """
        scans = [entry for entry in self.found.slides if not _is_picture(entry.path)]
        names = {name for entry in scans for name in _names(entry.path)}
        beside = {(entry.path.parent, name) for entry in scans for name in _names(entry.path)}
        kept = []
        for entry in self.found.slides:
            name = stem_of(entry.path).lower()
            apart = {part.lower() for part in entry.below.parent.parts} & PICTURE_FOLDERS
            made = (entry.path.parent, name) in beside or (apart and name in names)
            if made and _is_picture(entry.path):
                self._skip(
                    entry.path,
                    "pictures that have the names of slides in other formats, so are taken for "
                    "overviews or masks of them (rename those that are slides)",
                )
            else:
                kept.append(entry)
        self.found.slides = kept

    def _add_folder(self, root: Path) -> None:
        for folder, files in walk(root, self.found, self._leave_out):
            before = len(self.found.slides)
            self._add_all(files, root, given=False)
            if folder.suffix.lower() in SLIDES and len(self.found.slides) == before:
                self.found.refuse(folder, "is a folder without slides, not a file")

    def _add_all(self, files: list[Path], root: Path, given: bool) -> None:
        parts = {part for path in files if (p := _parts(path)) for part in p}
        for path in files:
            if path not in parts and (path.is_dir() or self._wanted(path, given)):
                self._add_file(path, path.relative_to(root))

    def _wanted(self, path: Path, given: bool) -> bool:
        """Say whether a file may be a slide; note why it is skipped if it should be one."""
        suffix, name = path.suffix.lower(), path.name
        inner = Path(path.stem).suffix.lower()
        if name.startswith("._"):
            self._skip(path, "companion files of macOS")
        elif name.startswith((".", "~$")) or name in {"Thumbs.db", "desktop.ini"}:
            if suffix in SLIDES or given:
                self._skip(path, "hidden files")
        elif suffix in UNFINISHED or name.endswith("~"):
            self._skip(path, "unfinished or temporary files")
        elif suffix in PACKED and not name.lower().endswith(ENDINGS):
            if inner in SLIDES or given:
                self._skip(path, "packed files (unpack them first)")
        elif is_mask(path):
            if not mask_of_slide(path):
                if given:
                    return True
                self._skip(
                    path, "label images without a slide (give their paths if they are slides)"
                )
        elif suffix in {*PICTURES, ".tif", ".tiff"} and _beside(path, OVERVIEWS):
            self._skip(path, "small pictures of slides")
        elif suffix in SLIDES or ((not suffix or suffix[1:].isdigit()) and _marked(path)):
            return True
        elif reason := why_unread(path) or (None if given else why_not_taken(path)):
            if _slide_beside(path, path.stem) or path.parent.name.lower() in PICTURE_FOLDERS:
                self._skip(
                    path,
                    "files in formats that are not read, beside slides of their name or in folders "
                    "of masks and overviews",
                )
            else:
                self.found.refuse(path, reason)
        elif given and name.lower().endswith(ENDINGS):
            self._skip(path, "annotations, which are found by the names of their slides")
        elif given and suffix in NO_SLIDE:
            self._skip(path, "files that are no slides")
        else:
            return given
        return False

    def _add_file(self, path: Path, below: Path) -> None:
        try:
            real = path.resolve(strict=True)
            if real in self._taken and not self._replaces_link(path, real):
                return
            self._taken[real] = path
            if reason := unusable_folder(path) if path.is_dir() else unusable(path):
                self.found.refuse(path, reason)
            elif path.is_dir():
                self.found.slides.append(SlideEntry(path, below))
            elif path.suffix.lower() in {".dcm", ".dicom"} or is_dicom(path):
                self._add_dicom(path, below)
            else:
                entry = SlideEntry(path, below, parts=tuple(companions(path)))
                self.found.slides.append(entry)
        except InputError as error:
            self.found.refuse(path, str(error))
        except OSError as error:
            self.found.refuse(path, why_unreadable(path, error))
        except RuntimeError:  # of resolve(strict=True), up to Python 3.12
            self.found.refuse(path, "cannot be read: is a loop of links")

    def _replaces_link(self, path: Path, real: Path) -> bool:
        """Say whether a file is to be taken after all, instead of a link to it.

        Its annotation lies beside the file, not beside the link.
        """
        link = self._taken[real]
        if path.is_symlink() or not link.is_symlink():
            return False
        self.found.slides = [entry for entry in self.found.slides if entry.path != link]
        self.found.notes.append(f"{link} is a link to {path}, which is taken")
        return True

    def _add_dicom(self, path: Path, below: Path) -> None:
        own = read_instance(path)
        if isinstance(own, str):
            self.found.refuse(path, own)
            return
        if own.series in self._series and not self._replaces_series(own):
            return
        files = [item for item in self._folder(path.parent) if item.series == own.series]
        if reason := fault_of(files):
            self._series[own.series] = []
            return self.found.refuse(path, reason)
        files = self._series[own.series] = main_first(files)
        main = files[0]
        if not main.level:
            self._skip(path, "labels or overviews in DICOM, of series without a level")
            return
        self.found.slides.append(
            SlideEntry(
                main.path,
                below.parent / main.path.name,
                parts=tuple(item.path for item in files[1:]),
                stated_patient=main.patient,
            )
        )

    def _replaces_series(self, own: Instance) -> bool:
        """Say whether a file of a known series is to be taken, because others were links to it.

        If it lies in another folder than the others, and is no copy of one, they are refused.
        """
        known = self._series[own.series]
        if not known or known[0].path.parent == own.path.parent:  # refused, or known with it
            return False
        others = [entry for entry in self.found.slides if entry.path != known[0].path]
        if any(item.path.resolve() == own.path.resolve() for item in known):
            self.found.slides = others
            return True
        if reason := fault_elsewhere(known, own):
            self.found.slides = others
            self.found.refuse(known[0].path, reason)
            self._series[own.series] = []
        else:
            self._skip(own.path, "copies of DICOM files that lie in another folder")
        return False

    def _folder(self, folder: Path) -> list[Instance]:
        if folder not in self._instances:
            files = [item for item in sorted(folder.iterdir()) if _marked(item)]
            read = [read_instance(item) for item in files]
            self._instances[folder] = [item for item in read if isinstance(item, Instance)]
        return self._instances[folder]


def walk(
    root: Path, found: Found, leave_out: Path | None = None
) -> Iterator[tuple[Path, list[Path]]]:
    """Yield each folder with its files and OME-Zarr folders, in the order of their names.

    Hidden folders, the data folders of MIRAX slides and `leave_out` are left out. Links to
    folders are followed, each folder once. Folders that cannot be read are refused.
    """
    seen: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        found.refuse(error.filename or root, f"cannot be read: {explain(error)}")

    for name, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        here = Path(name)
        status = here.stat()
        if (status.st_dev, status.st_ino) in seen or here.resolve() == leave_out:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        own = {Path(file).stem for file in files if file.lower().endswith(".mrxs")}
        folders[:] = sorted(
            item for item in folders if not item.startswith((".", "__MACOSX")) and item not in own
        )
        zarrs = [item for item in folders if is_zarr(here / item)]
        folders[:] = [item for item in folders if item not in zarrs]
        yield here, [here / file for file in sorted([*files, *zarrs])]


def unusable(path: Path) -> str | None:
    """Return why a file cannot be a slide or a tile, before it is opened; None if it may be one.

    Raises:
        OSError: the file is missing or cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return "is no file, but a folder, a pipe, a socket or a device"
    if status.st_size == 0 and path.suffix.lower() != MIRAX:  # its folder holds all of it
        return "is empty (0 bytes): copy it again"
    if _there(path.with_name(f"{path.name}.aria2")):
        return "is an unfinished download: its .aria2 file is beside it"
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file: run 'git lfs pull'"
    return None


def unusable_folder(path: Path) -> str | None:
    """Return why an OME-Zarr folder cannot be a slide, before it is opened.

    Raises:
        OSError: a folder cannot be read.
    """
    for here, folders, files in os.walk(path):
        for item in (Path(here) / name for name in (*folders, *files)):
            if item.is_symlink() or not (item.is_file() or item.is_dir()):
                return f"has a link or special file in it ({item.relative_to(path)}): copy it whole"
    names = zarr_files(path)
    if len(names) > MAX_FILES:
        return (
            f"has {len(names)} files; a slide may have {MAX_FILES}: save it with larger chunks, or "
            "with shards (OME-Zarr 0.5)"
        )
    if odd := [name for name in names if not name.isascii() or "\\" in name]:
        return f"has files whose names are none of OME-Zarr's: {some(map(shown, odd))}"
    return None


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES


def _names(path: Path) -> tuple[str, str]:
    """Return the names, in small letters, that a picture of a slide may have before its suffix."""
    return stem_of(path).lower(), path.name.lower()


def _parts(path: Path) -> list[Path]:
    if path.suffix.lower() not in HAMAMATSU or path.name.startswith("."):
        return []
    try:
        return named_parts(path)
    except (OSError, InputError):
        return []


def _marked(path: Path) -> bool:
    try:
        return not path.name.startswith(".") and path.is_file() and is_dicom(path)
    except OSError:
        return False


def is_mask(path: Path) -> bool:
    """Say whether a file's name, or that of a slide beside it, marks it as a label image."""
    if path.suffix.lower() not in MASK_SUFFIXES:
        return False
    return stem_of(path).lower().endswith(MASK_ENDINGS) or mask_of_slide(path)


def mask_of_slide(path: Path) -> bool:
    """Say whether the name of a slide beside a file marks it as a label image."""
    endings = (*MASK_ENDINGS, *GT_ENDINGS)
    return _beside(path, endings) or _beside(path, LABEL_ENDINGS, PICTURES)


def _beside(path: Path, endings: tuple[str, ...], suffixes: set[str] = SLIDES) -> bool:
    """Say whether a file is beside a slide of its name without one of some endings."""
    stem = stem_of(path)
    ending = next((e for e in endings if stem.lower().endswith(e)), None)
    return ending is not None and _slide_beside(path, stem[: -len(ending)], suffixes)


def _slide_beside(path: Path, stem: str, suffixes: set[str] = SLIDES) -> bool:
    """Say whether a slide of this name, with or without its suffix, is beside a file."""
    if Path(stem).suffix.lower() in suffixes and _there(path.with_name(stem)):
        return True
    kinds = (*suffixes, ".ome.tif", ".ome.tiff") if ".tif" in suffixes else suffixes
    return any(_there(path.with_name(stem + s)) for x in kinds for s in (x, x.upper()))


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long
        return False
