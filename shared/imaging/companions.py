"""The other files of a slide: which they are, and that they lie beside it.

MIRAX and Hamamatsu's VMS and VMU name their files in a text, DICOM is all files of a folder.
Names that lead elsewhere, and links, are refused: they would make a stranger's slide show other
files of this machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from shared.errors import InputError, quoted

HAMAMATSU = (".vms", ".vmu")
MIRAX = ".mrxs"

OPTIONAL = ".opt"
"""Suffix of Hamamatsu's optimisation files, without which slides are read more slowly."""

_MIRAX_KEYS = ("indexfile", "file_")
_HAMAMATSU_KEYS = ("imagefile", "mapfile", "optimisationfile", "macroimage")
"""How the keys begin whose values are names of files."""

_DICOM_MARK = b"DICM"
_HAMAMATSU_MARK = b"Virtual Microscope Specimen]"
_MAX_TEXT = 4 << 20


def companions(path: Path, *, listing: bool = False) -> list[Path]:
    """List the other files that reading a slide takes; none for a folder, which is the slide.

    Args:
        path: the slide's main file or folder.
        listing: whether it is known to name its files, wherever the mark of that lies in it.

    Raises:
        InputError: a file that the slide needs is missing, a link, or not beside it; the message
            goes on after the slide's name.
        OSError: a folder or a file cannot be read.
    """
    if path.is_dir():
        _unlinked(path.rglob("*"))
        return []
    with path.open("rb") as file:
        head = file.read(4096)
    if head[128:132] == _DICOM_MARK:
        beside = (item for item in sorted(path.parent.iterdir()) if item != path)
        return _unlinked(item for item in beside if _is_dicom(item))
    mirax = path.suffix.lower() == MIRAX
    hamamatsu = path.suffix.lower() in HAMAMATSU or _HAMAMATSU_MARK in head
    if not (mirax or hamamatsu or listing):
        return []
    parts = named_parts(path)
    missing = [item.name for item in parts if not item.is_file() and item.suffix != OPTIONAL]
    if missing:
        raise InputError(f"needs {', '.join(missing)} beside it, which is not there")
    return _unlinked(sorted(path.with_suffix("").rglob("*")) if mirax else parts)


def named_parts(path: Path) -> list[Path]:
    """List the files that a slide's main file or its Slidedat.ini names, there or not.

    Raises:
        InputError: a MIRAX slide has no folder, or a name is that of a file elsewhere, which
            OpenSlide would read.
        OSError: the file cannot be read.
    """
    listing, folder = path, path.parent
    keys: tuple[str, ...] = _HAMAMATSU_KEYS
    if path.suffix.lower() == MIRAX:
        folder, keys = path.with_suffix(""), _MIRAX_KEYS
        listing = folder / "Slidedat.ini"
        if not folder.is_dir():
            raise InputError(f"needs its folder {folder.name} beside it, which is not there")
        if folder.is_symlink():
            raise InputError(f"has a link as its folder {folder.name}: copy the folder itself")
        if not listing.is_file():
            raise InputError(f"needs Slidedat.ini in its folder {folder.name}")
    names = [name for key, name in _entries(listing) if key.startswith(keys)]
    for name in names:
        if "/" in name or "\\" in name or "\0" in name or name in {".", ".."}:
            raise InputError(
                f"names {quoted(name)} in {listing.name}, which is not beside it: a slide's "
                "files must "
                "lie in its own folder"
            )
    return [folder / name for name in dict.fromkeys(names)]


def _entries(listing: Path) -> Iterable[tuple[str, str]]:
    """Yield the keys, in small letters, and the values of a text, but for FILE_COUNT."""
    with listing.open("rb") as file:
        data = file.read(_MAX_TEXT + 1)
    if len(data) > _MAX_TEXT:
        raise InputError(f"has {listing.name} of more than {_MAX_TEXT >> 20} MiB: no list of files")
    for line in data.decode("utf-8-sig", "surrogateescape").split("\n"):
        key, equals, value = (part.strip() for part in line.partition("="))
        if equals and value and key.lower() != "file_count":
            yield key.lower(), value


def _unlinked(files: Iterable[Path]) -> list[Path]:
    """Return the files among paths. Raises `InputError` if one is a link."""
    found = []
    for item in files:
        if item.is_symlink():
            raise InputError(f"has a link as its file {item.name}: copy the file itself")
        if item.is_file():
            found.append(item)
    return found


def _is_dicom(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == _DICOM_MARK
