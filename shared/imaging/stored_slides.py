"""Slides of a store: their local files, and the check that they are what a cohort was made from."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from shared.contracts.base import Classes
from shared.contracts.ingest import (
    CohortRecord,
    SlideRecord,
    cohort_key,
    label_map_key,
    patches_key,
    slide_key,
)
from shared.errors import InputError, all_quoted
from shared.imaging.label_map import LabelMap
from shared.imaging.slide import Slide
from shared.imaging.zarr_slide import zarr_files
from shared.storage import (
    DamagedObjectError,
    ObjectNotFoundError,
    Patch,
    Store,
    checked_file,
    content_hash,
    content_hash_of_files,
    content_hash_of_folder,
)
from shared.storage.formats import count_rows


@contextmanager
def local_source(store: Store, source: str) -> Iterator[Path]:
    """Yield a local path of a slide's main file or folder, with its companion files beside it.

    Args:
        store: the store that holds the slide.
        source: an absolute path, which is yielded unchecked, or a key
            `sources/<hash>/<file>` or `slides/<slide>/source/<file>`; formats with several files
            (MRXS, VMS, DICOM) have all of them below the same folder, and the key of an OME-Zarr
            slide is that of its folder.

    Raises:
        ObjectNotFoundError: the store holds no such object.
    """
    if Path(source).is_absolute():
        yield Path(source)
        return
    parts = PurePosixPath(source).parts
    if parts[0] == "sources":
        prefix = "/".join(parts[:2]) + "/"
    elif parts[0] == "slides" and parts[2:3] == ("source",):
        prefix = "/".join(parts[:3]) + "/"
    else:
        yield store.local(source)
        return
    rest = source.removeprefix(prefix)
    keys = list(store.list(prefix))
    folder_slide = any(key.startswith(f"{source}/") for key in keys)
    if not folder_slide and (source not in keys or len(keys) == 1):
        yield store.local(source)
        return
    files = {PurePosixPath(key.removeprefix(prefix)): store.local(key) for key in keys}
    first, local = next(iter(files.items()))
    root = local.parents[len(first.parts) - 1]
    if all(path == root / place for place, path in files.items()):
        yield root / rest
        return
    with _beside_each_other(files, local.parent) as folder:
        yield folder / rest


@contextmanager
def _beside_each_other(files: dict[PurePosixPath, Path], near: Path) -> Iterator[Path]:
    """Yield a folder with files at their places below it; no file is a symbolic link.

    They are hard links, in the temporary folder or in `near`; where neither is possible, copies.
    """
    with ExitStack() as stack:
        ways: tuple[tuple[Path | None, Callable[[Path, Path], object]], ...] = (
            (None, os.link), (near, os.link), (None, shutil.copyfile),
        )  # fmt: skip
        for place, bring in ways:
            with suppress(OSError):
                made = tempfile.TemporaryDirectory(prefix="htd-slide-", dir=place)
                folder = Path(stack.enter_context(made))
                for name, path in files.items():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    bring(path.resolve(), folder / name)
                break
        else:
            raise InputError(f"no folder here has room for the {len(files)} files of a slide")
        yield folder


def read_record(store: Store, cohort: CohortRecord, slide: str) -> SlideRecord:
    """Return the record of a cohort's slide, with the cohort's name of the slide.

    Raises:
        ObjectNotFoundError: the slide was deleted.
        InputError: the folder of the slide holds another slide now, or another resolution.
    """
    record = store.get_model(slide_key(cohort.folder(slide)), SlideRecord)
    known = (cohort.sha256[slide], cohort.mpp.get(slide, record.mpp))
    if (record.sha256, record.mpp) != known:
        raise InputError(
            f"slide {slide!r} of cohort {cohort.cohort!r} was replaced after the cohort was made: "
            "ingest the cohort again"
        )
    return record.model_copy(update={"slide": slide})


def count_patches(store: Store, cohort: CohortRecord, slide: str) -> int:
    """Return the number of a slide's patches; older records of cohorts do not state it."""
    if slide in cohort.counts:
        return cohort.counts[slide]
    key = patches_key(cohort.cohort, slide)
    return count_rows(store, key) if store.exists(key) else 0


@contextmanager
def open_slide(
    store: Store, cohort: CohortRecord, slide: str
) -> Iterator[tuple[Slide, SlideRecord]]:
    """Open a slide of a cohort.

    Raises:
        ObjectNotFoundError: the slide was deleted.
        InputError: the slide's file is not what the cohort was made from, or is replaced while it
            is read.
    """
    record = read_record(store, cohort, slide)
    with (
        local_source(store, record.source) as path,
        unchanged(path, record.parts, record.sha256, f"slide {slide!r}"),
        Slide.open(path, record.mpp, record.mpp_y) as opened,
    ):
        yield opened, record


MOST_NAMED = 20
"""Number of slides of a cohort that a message names."""


class NoLabelMapError(InputError):
    """A cohort has no label map of a slide."""


class StoredLabelMap(NamedTuple):
    """The label map that a cohort has of a slide.

    Attributes:
        key: its key.
        sha256: its SHA-256; None: the record of the cohort is of a version that did not state it.
        classes: its classes.
        slide: SHA-256 of the slide that it is a map of.
    """

    key: str
    sha256: str | None
    classes: Classes
    slide: str


def find_label_map(store: Store, cohort: CohortRecord, slide: str) -> StoredLabelMap:
    """Find the label map that a cohort has of a slide.

    What lies under its key need not be that: the slide may have left the cohort, or an ingest
    with other classes may have broken off. So whoever opens it compares the SHA-256.

    Raises:
        NoLabelMapError: the cohort has no such slide, or no labels of it.
    """
    if slide not in cohort.splits:
        raise NoLabelMapError(
            f"cohort {cohort.cohort!r} has no slide {slide!r}: name one that it has "
            f"({all_quoted(sorted(cohort.splits)[:MOST_NAMED])}), or ingest it with this one"
        )
    key, digest = label_map_key(cohort.folder(slide), cohort.cohort), cohort.labels.get(slide)
    stated = "labels" in cohort.model_fields_set
    if cohort.classes is None or (digest is None and (stated or not store.exists(key))):
        raise NoLabelMapError(f"slide {slide!r} of cohort {cohort.cohort!r} has no labels")
    return StoredLabelMap(key, digest, cohort.classes, cohort.sha256[slide])


def label_map_in(store: Store, folder: str, cohort: str) -> StoredLabelMap:
    """Find the label map that a cohort has of the slide in a folder below slides/.

    Raises:
        NoLabelMapError: there is no such cohort, or it has no labels of the slide.
    """
    none = f"cohort {cohort!r} has no label map of slide {folder!r}"
    try:
        record = store.get_model(cohort_key(cohort), CohortRecord)
    except ObjectNotFoundError as error:  # the cohort was deleted, and its map may be there
        raise NoLabelMapError(f"{none}: there is no such cohort") from error
    name = record.name_of(folder)
    if name is None:
        raise NoLabelMapError(f"{none}, which is not one of its slides: ingest it with this slide")
    return find_label_map(store, record, name)


def open_label_map(store: Store, key: str, digest: str | None = None) -> LabelMap:
    """Open a label map of a store.

    Args:
        store: holds it.
        key: its key.
        digest: its SHA-256; None: it is not known.

    Raises:
        ObjectNotFoundError: the store holds no such object.
        DamagedObjectError: it is not as it was made, or no label map. Reading may raise it too.
    """
    return LabelMap(checked_file(store, key, digest), partial(DamagedObjectError, store, key))


def slide_hash(
    path: Path, parts: Sequence[str], patches: Mapping[Path, Sequence[Patch]] | None = None
) -> str:
    """Return the SHA-256 of a slide's content.

    Args:
        path: the main file, or the folder of an OME-Zarr slide.
        parts: paths of its other files, relative to the main file's folder.
        patches: path → how a copy of that file differs from it, to hash the copy. Of a folder, the
            copy has only the files that are listed here.

    Raises:
        OSError: a file cannot be read.
    """
    if path.is_dir() and patches is not None:
        own = {file.relative_to(path).as_posix(): found for file, found in patches.items()}
        return content_hash_of_folder(path, own, own)
    if path.is_dir():
        return content_hash_of_folder(path, zarr_files(path))
    if not parts:
        return content_hash(path, (patches or {}).get(path, ()))
    files = [("", path), *((part, path.parent / part) for part in parts)]
    return content_hash_of_files(files, patches)


@contextmanager
def unchanged(path: Path, parts: Sequence[str], sha256: str, what: str) -> Iterator[None]:
    """Check a slide's content before and after it is read; see `check_content`.

    It is hashed again only where a file's size, times or inode differ.
    """
    check_content(path, parts, sha256, what)
    yield
    check_content(path, parts, sha256, what)


def check_content(path: Path, parts: Sequence[str], sha256: str, what: str) -> None:
    """Raise `InputError` if a file of a slide is missing, or they do not have the SHA-256."""
    try:
        same = slide_hash(path, parts) == sha256
    except OSError as error:
        raise InputError(f"{what}: {path.name} cannot be read: {error.strerror}") from error
    if not same:
        raise InputError(
            f"{what}: {path.name} has changed since it was recorded: run 'htd ingest' of its "
            "cohort again, with --fresh if the copy in the store has changed, or restore the file"
        )
