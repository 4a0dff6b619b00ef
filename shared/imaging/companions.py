"""The other files of a slide: which they are, and that they lie beside it.

MIRAX and Hamamatsu's VMS and VMU name their files in a text, DICOM is all files of a folder.
Names that lead elsewhere, and links, are refused: they would make a stranger's slide show other
files of this machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from shared.errors import InputError

HAMAMATSU = (".vms", ".vmu")

MIRAX = ".mrxs"

OPTIONAL = ".opt"
"""Suffix of Hamamatsu's optimisation files, without which slides are read more slowly."""

_DICOM_MARK = b"DICM"
_HAMAMATSU_MARK = b"Virtual Microscope Specimen]"
_HAMAMATSU_NAMES = re.compile(
    rb"\s*(?:imagefile|mapfile|optimisationfile|macroimage)[^=]*=(.*)", re.IGNORECASE
)
_MIRAX_NAMES = re.compile(rb"\s*(?:file_(?!count)|indexfile)[^=]*=(.*)", re.IGNORECASE)
_MAX_TEXT = 4 << 20


def companions(path: Path) -> list[Path]:
    """List the other files that reading a slide takes.

    Args:
        path: the slide's main file, or a folder that is a slide, which has no other files.

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
    suffix = path.suffix.lower()
    if suffix not in {MIRAX, *HAMAMATSU} and _HAMAMATSU_MARK not in head:
        return []
    parts = named_parts(path)
    missing = [item.name for item in parts if not item.is_file() and item.suffix != OPTIONAL]
    if missing:
        raise InputError(f"needs {', '.join(missing)} beside it, which is not there")
    if suffix == MIRAX:
        parts = sorted(path.with_suffix("").rglob("*"))
    return _unlinked(parts)


def named_parts(path: Path) -> list[Path]:
    """List the files that a slide's main file or its Slidedat.ini names, there or not.

    Raises:
        InputError: a MIRAX slide has no folder, or a name is that of a file elsewhere.
        OSError: the file cannot be read.
    """
    if path.suffix.lower() != MIRAX:
        return [path.parent / name for name in _names(path, _HAMAMATSU_NAMES)]
    folder = path.with_suffix("")
    if not folder.is_dir():
        raise InputError(f"needs its folder {folder.name} beside it, which is not there")
    if folder.is_symlink():
        raise InputError(f"has a link as its folder {folder.name}: copy the folder itself")
    if not (folder / "Slidedat.ini").is_file():
        raise InputError(f"needs Slidedat.ini in its folder {folder.name}")
    return [folder / name for name in _names(folder / "Slidedat.ini", _MIRAX_NAMES)]


def _names(path: Path, pattern: re.Pattern[bytes]) -> list[str]:
    """Return the file names in a text of keys and values. Raises `InputError` for paths."""
    with path.open("rb") as file:
        text = file.read(_MAX_TEXT + 1)
    if len(text) > _MAX_TEXT:
        raise InputError(f"has {path.name} of more than {_MAX_TEXT >> 20} MiB: no list of files")
    found = [match[1].strip() for line in text.split(b"\n") if (match := pattern.match(line))]
    names = [name.decode("utf-8", "surrogateescape") for name in dict.fromkeys(found) if name]
    for name in names:
        if "/" in name or "\\" in name or "\0" in name or name in {".", ".."}:
            raise InputError(
                f"names {name!r} in {path.name}, which is not beside it: a slide's files must lie "
                "in its own folder"
            )
    return names


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
