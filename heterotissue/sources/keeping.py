"""Putting slides and annotations into the store, by their content."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from minio.error import MinioException
from urllib3.exceptions import HTTPError

from heterotissue.sources.annotations import add_labels
from heterotissue.sources.names import Named, RenamedError, distinct_names
from heterotissue.sources.patients import add_patients
from heterotissue.sources.records import Found, Refusal, SlideEntry, explain, is_utf8, shown, some
from heterotissue.sources.split_folders import add_splits
from heterotissue.sources.unread import why_refused
from shared.contracts.ingest import CohortRecord, SlideSource, cohort_key
from shared.errors import InputError
from shared.imaging.redaction import NoSlideError, apply, in_zarr, is_left_out, redactions
from shared.imaging.stored_slides import slide_hash
from shared.imaging.zarr_slide import MARKS, zarr_files
from shared.jobs import Ledger, UnreadableRecordError
from shared.jobs import names as names_of_jobs
from shared.jobs.records import JobNotFoundError
from shared.storage import (
    DamagedObjectError,
    ObjectNotFoundError,
    OverlayStore,
    Patch,
    Store,
    check_room,
    content_hash,
    sha256,
)

LONGEST_FILE = 200
"""Bytes of a file's name beyond which the store uses a shorter one."""

SAID = ("patient", "site", "split", "mpp")
"""What tables and names say of a slide."""


@dataclass
class Sources:
    """The slides of a request, and what was left out.

    Attributes:
        slides: for `IngestRequest.slides`.
        refused: files that were left out, and why.
        notes: remarks for the user.
    """

    slides: tuple[SlideSource, ...] = ()
    refused: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Hashed:
    """A slide with the hashes of what is kept of it, and how that differs from its files.

    `patches` has each file that is kept of an OME-Zarr folder; None: slides are kept as they are.
    """

    entry: SlideEntry
    sha256: str
    labels_sha256: str | None
    patches: dict[Path, list[Patch]] | None


def slide_sources(
    store: Store,
    found: Found,
    *,
    labels: Path | None = None,
    use_labels: bool = True,
    mpp: float | None = None,
    patient: str | None = None,
    in_place: bool = False,
    keep_source: bool = False,
    fresh: bool = False,
    cohort: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sources:
    """Put slides and annotations into the store, and describe them for an ingest request.

    A slide is kept below `sources/<hash>/`, its annotation below `annotations/<hash>/`, by the
    first 32 digits of their contents' SHA-256. What the store has already is not copied again,
    unless it is asked for.
    The copy lacks label and macro images and text that names people, where the format is known
    (`shared.imaging.redaction`).

    Args:
        store: receives the files.
        found: slides, by `find_slides`.
        labels: folder of the annotations; None: annotations are beside the slides.
        use_labels: whether annotations are read.
        mpp: µm per pixel, which overrides what the slides state, unless a table gives it.
        patient: regular expression or table that tells a slide's patient.
        in_place: leave the files in their folders, and refer to them by their absolute paths.
        keep_source: copy slides as they are, with their label and macro images.
        fresh: copy also what the store has already, because a copy may be damaged.
        cohort: cohort that grows, whose slides keep the names that they have in it.
        progress: called with the number of slides that are done, and of all.

    Raises:
        InputError: `labels` or `patient` fit no slide, folders state the splits of only some, no
            slide is left, a slide has another file name now, or the store takes no files.
    """
    add_patients(found, patient)
    add_labels(found, labels, use_labels)
    add_splits(found)  # masks are no slides by now
    found.slides = [entry for entry in found.slides if _has_usable_name(found, entry, in_place)]
    known = _known(store, cohort)
    hashed = _distinct(found, _hash_all(found, in_place or keep_source, known, progress))
    if not hashed:
        reasons = [f"{item.path}: {item.reason}" for item in found.refused]
        raise InputError(f"no slide is left: {'; '.join(reasons)}")
    names = _names(hashed, known, cohort)
    _check_room(store, hashed, in_place)
    slides = tuple(
        _kept(store, name, item, mpp, in_place, fresh)
        for name, item in zip(names, hashed, strict=True)
    )
    return Sources(slides, found.refused, found.notes)


def _names(hashed: list[_Hashed], known: dict[str, str], cohort: str | None) -> list[str]:
    """Name the slides. Raises `InputError` if a slide of the cohort has another file name now."""
    items = [
        Named(item.entry.name or item.entry.path.stem, _folder(item.entry.path), item.sha256)
        for item in hashed
    ]
    try:
        return distinct_names(items, known)
    except RenamedError as error:
        raise InputError(
            f"cohort {cohort!r}: {error}. Name the files as they were, or make the cohort "
            "again with --replace"
        ) from error


def _folder(path: Path) -> str:
    return path.resolve().parent.name


def _check_room(store: Store, hashed: list[_Hashed], in_place: bool) -> None:
    """Raise `InputError` if the store has no room for the files that are copied."""
    if in_place or store.free() is None:
        return
    needed = 0
    for item in hashed:
        annotation = [(item.entry.labels, f"annotations/{(item.labels_sha256 or '')[:32]}/")]
        files = (item.entry.path, *item.entry.parts)
        slide = [(path, f"sources/{item.sha256[:32]}/") for path in files]
        for path, prefix in [*slide, *annotation]:
            if path is not None and not any(store.list(prefix)):
                needed += path.stat().st_size
    check_room(store, needed, f"copies of {len(hashed)} slides", "or refer to them by --in-place")


def _known(store: Store, cohort: str | None) -> dict[str, str]:
    """Return the names of the contents that a cohort has already, or that it skipped."""
    if cohort is None:
        return {}
    known: dict[str, str] = {}
    with storing(store):
        job = names_of_jobs.owner(store, f"cohorts/{cohort}")
        with suppress(JobNotFoundError, UnreadableRecordError):
            slides = Ledger(store).request(job).get("slides", ()) if job else ()
            known |= {item["sha256"]: item["slide"] for item in slides if item.get("sha256")}
        with suppress(ObjectNotFoundError, DamagedObjectError):
            record = store.get_model(cohort_key(cohort), CohortRecord)
            known |= {digest: name for name, digest in record.sha256.items()}
    return known


def _hash_all(
    found: Found, whole: bool, known: Collection[str], progress: Callable[[int, int], None]
) -> list[_Hashed]:
    """Hash what is kept of every slide and annotation; slides that cannot be read are refused.

    Args:
        found: the slides.
        whole: whether files are kept as they are.
        known: hashes of slides that the cohort has; one that was copied whole stays so.
        progress: called with the number of slides that are done, and of all.
    """
    hashed, left_out = [], []
    for number, entry in enumerate(found.slides):
        try:
            item = _hash(entry, whole)
            if item.patches and item.sha256 not in known:
                before = _hash(entry, whole=True)
                item = before if before.sha256 in known else item
            hashed.append(item)
            left_out += [path for path in entry.parts if not whole and path not in item.entry.parts]
        except NoSlideError as error:
            found.refuse(entry.path, str(error))
        except InputError as error:
            because = (
                f"its label and macro images cannot be taken out of a copy: {error}. Copy it whole "
                "with --keep-source, or leave it where it is with --in-place"
            )
            found.refuse(entry.path, why_refused(entry.path) or because)
        except OSError as error:
            found.refuse(error.filename or entry.path, f"cannot be read: {explain(error)}")
        progress(number + 1, len(found.slides))
    if left_out:
        found.notes.append(
            "not copied, because they show labels, macro images or no level of their slide: "
            f"{some(shown(path.name) for path in left_out)}"
        )
    return hashed


def _hash(entry: SlideEntry, whole: bool) -> _Hashed:
    labels = content_hash(entry.labels) if entry.labels else None
    if whole:
        return _Hashed(entry, slide_hash(entry.path, _parts(entry)), labels, None)
    if entry.path.is_dir():
        files = {entry.path / name: found for name, found in in_zarr(entry.path).items()}
        return _Hashed(entry, slide_hash(entry.path, (), files), labels, files)
    parts = tuple(path for path in entry.parts if not is_left_out(entry.path, path))
    kept = replace(entry, parts=parts)
    patches = {path: found for path in (entry.path, *parts) if (found := redactions(path))}
    return _Hashed(kept, slide_hash(entry.path, _parts(kept), patches), labels, patches)


def _parts(entry: SlideEntry) -> list[str]:
    return [_relative(entry, path) for path in entry.parts]


def _relative(entry: SlideEntry, path: Path) -> str:
    return path.relative_to(entry.path.parent).as_posix()


def _distinct(found: Found, hashed: list[_Hashed]) -> list[_Hashed]:
    """Take slides of equal content once: the first that has an annotation, or else the first."""
    same: dict[str, list[_Hashed]] = {}
    for item in hashed:
        same.setdefault(item.sha256, []).append(item)
    kept = []
    for items in same.values():
        first, *others = sorted(items, key=lambda item: item.entry.labels is None)
        kept.append(first)
        for item in others:
            if facts := _differences(first, item):
                found.refuse(
                    item.entry.path,
                    f"has the same content as {shown(first.entry.below)}, but another {facts}: "
                    "remove the one that is wrong",
                )
        if equal := [shown(item.entry.below) for item in others if not _differences(first, item)]:
            found.notes.append(
                f"{some(equal)} {'has' if len(equal) == 1 else 'have'} the same content as "
                f"{shown(first.entry.below)}: taken once"
            )
    return kept


def _differences(first: _Hashed, other: _Hashed) -> str:
    """Name what another entry says differently of a slide."""
    if other.labels_sha256 not in {None, first.labels_sha256}:
        return "annotation"
    facts = {name: (getattr(first.entry, name), getattr(other.entry, name)) for name in SAID}
    return " and ".join(name for name, (a, b) in facts.items() if None not in (a, b) and a != b)


def _kept(
    store: Store, name: str, item: _Hashed, mpp: float | None, in_place: bool, fresh: bool
) -> SlideSource:
    entry, override = item.entry, item.entry.mpp or mpp
    folder = f"sources/{item.sha256[:32]}"
    source = _place(store, folder, entry.path, name, entry.parts, in_place, fresh, item.patches)
    annotation = None
    if entry.labels and item.labels_sha256:
        folder = f"annotations/{item.labels_sha256[:32]}"
        annotation = _place(store, folder, entry.labels, name, (), in_place, fresh)
    return SlideSource(
        slide=name,
        stored_as=f"{name[:100]}-{sha256(f'{item.sha256} {override}'.encode())[:12]}",
        source=source,
        parts=tuple(_parts(entry)),
        sha256=item.sha256,
        labels=annotation,
        labels_sha256=item.labels_sha256,
        label_format=entry.label_format,
        mpp=override,
        patient=entry.patient,
        site=entry.site,
        split=entry.split,
    )


def _place(
    store: Store,
    folder: str,
    path: Path,
    name: str,
    parts: tuple[Path, ...],
    in_place: bool,
    fresh: bool,
    patches: Mapping[Path, Sequence[Patch]] | None = None,
) -> str:
    """Return the absolute path or the key of a file, which is copied if the store lacks it."""
    if in_place:
        return str(path.resolve())
    main = path.name
    if not _is_plain(main):
        main = name + ("".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix)
    if path.is_dir():
        kept = zarr_files(path) if patches is None else [_below(path, file) for file in patches]
        names = sorted(kept, key=lambda name: name not in MARKS)
        files = [(f"{main}/{name}", path / name) for name in names]
    else:
        files = [(main, path), *((p.relative_to(path.parent).as_posix(), p) for p in parts)]
    with storing(store):
        for part, file in reversed(files):  # the main file last: it says that all are there
            own = (patches or {}).get(file, ())
            key = f"{folder}/{part}"
            if fresh or not _holds(store, key, file, own, whole=not path.is_dir()):
                _copy(store, key, file, own)
    return f"{folder}/{main}"


def _holds(store: Store, key: str, path: Path, patches: Sequence[Patch], *, whole: bool) -> bool:
    """Say whether the store holds a copy of a file, by its size and, in a directory, its content.

    Args:
        store, key: where the copy is.
        path, patches: the file, and what differs in the copy.
        whole: whether to compare contents, whose hashes are remembered.
    """
    try:
        if store.size(key) != path.stat().st_size:
            return False
        if not whole or store.fetches():
            return True
        return content_hash(store.local(key)) == content_hash(path, patches)
    except ObjectNotFoundError:
        return False


def _below(folder: Path, file: Path) -> str:
    return file.relative_to(folder).as_posix()


def _copy(store: Store, key: str, path: Path, patches: Sequence[Patch]) -> None:
    if not patches or isinstance(store, OverlayStore):  # a dry run copies nothing
        store.put_file(key, path)
        return
    with store.writing(key) as copy:
        shutil.copyfile(path, copy)
        apply(copy, patches)


def _is_plain(name: str) -> bool:
    """Say whether a file's name can be the end of a key."""
    return is_utf8(name) and len(name.encode()) <= LONGEST_FILE and "\\" not in name


def _has_usable_name(found: Found, entry: SlideEntry, in_place: bool) -> bool:
    """Say whether the files of a slide can be referred to; refuse the slide if not."""
    paths = [entry.path, *entry.parts, *([entry.labels] if entry.labels else [])]
    if in_place and not all(is_utf8(str(path.resolve())) for path in paths):
        found.refuse(entry.path, "has a name that is not valid UTF-8: rename it, or copy it in")
        return False
    if (
        not in_place
        and entry.parts
        and not all(_is_plain(path.name) for path in (entry.path, *entry.parts))
    ):
        found.refuse(entry.path, "has a name that is too long, or has a backslash: rename it")
        return False
    return True


@contextmanager
def storing(store: Store) -> Iterator[None]:
    """Turn errors of the store, such as a full disk, into one `InputError` that says so."""
    try:
        yield
    except OSError as error:
        causes = {errno.ENOSPC: "it is full", errno.EDQUOT: "its quota is used up",
                  errno.EROFS: "it is read-only", errno.ENOTDIR: "it is no folder"}  # fmt: skip
        cause = causes.get(error.errno or 0, explain(error))
        raise InputError(f"the store {store.url} takes no files: {cause}") from error
    except (HTTPError, MinioException) as error:
        raise InputError(f"the store {store.url} does not answer: {error}") from error
