"""The other files of a slide in MIRAX or Hamamatsu's VMS and VMU, which name them."""

from __future__ import annotations

from pathlib import Path

from shared.errors import InputError

HAMAMATSU = (".vms", ".vmu")

MIRAX = ".mrxs"

OPTIONAL = ".opt"
"""Suffix of Hamamatsu's optimisation files, without which slides are read more slowly."""

NAMES = {
    MIRAX: ("indexfile", "file_"),
    ".vms": ("imagefile", "mapfile", "optimisationfile", "macroimage"),
    ".vmu": ("imagefile", "mapfile", "optimisationfile", "macroimage"),
}
"""Suffix → how the keys begin whose values are names of files."""


def companions(path: Path) -> list[Path]:
    """List the other files of a slide; DICOM has its own module.

    Args:
        path: the slide's main file.

    Raises:
        InputError: a file that the slide needs is missing, or lies elsewhere; the message goes on
            after the slide's name.
        OSError: a folder or a file cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in NAMES:
        return []
    parts = named_parts(path)
    missing = [item.name for item in parts if not item.is_file() and item.suffix != OPTIONAL]
    if missing:
        raise InputError(f"needs {', '.join(missing)} beside it, which is not there")
    if suffix == MIRAX:
        return sorted(item for item in path.with_suffix("").rglob("*") if item.is_file())
    return [item for item in parts if item.is_file()]


def named_parts(path: Path) -> list[Path]:
    """List the files that a slide's main file or its Slidedat.ini names, there or not.

    Raises:
        InputError: a MIRAX slide has no folder, or a name is that of a file elsewhere, which
            OpenSlide would read.
        OSError: the file cannot be read.
    """
    suffix, listing, folder = path.suffix.lower(), path, path.parent
    if suffix == MIRAX:
        folder = path.with_suffix("")
        listing = folder / "Slidedat.ini"
        if not folder.is_dir():
            raise InputError(f"needs its folder {folder.name} beside it")
        if not listing.is_file():
            raise InputError(f"needs Slidedat.ini in its folder {folder.name}")
    names = []
    for line in listing.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines():
        key, equals, value = (part.strip() for part in line.partition("="))
        if equals and value and key.lower().startswith(NAMES[suffix]) and key != "FILE_COUNT":
            names.append(value)
    if odd := [name for name in names if Path(name).name != name or name == ".."]:
        raise InputError(f"names files that are not beside it: {', '.join(odd[:3])}")
    return [folder / name for name in dict.fromkeys(names)]
