"""The other files of a slide in MIRAX or Hamamatsu's VMS and VMU, which name them."""

from __future__ import annotations

import configparser
from pathlib import Path

from shared.errors import InputError

HAMAMATSU = (".vms", ".vmu")


def companions(path: Path) -> list[Path]:
    """List the other files of a slide; DICOM has its own module.

    Args:
        path: the slide's main file.

    Raises:
        InputError: a file that the slide needs is missing.
        OSError: a folder or a file cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        folder = path.with_suffix("")
        if not folder.is_dir():
            raise InputError(f"needs its folder {folder.name} beside it, which is not there")
        return sorted(item for item in folder.rglob("*") if item.is_file())
    if suffix not in HAMAMATSU:
        return []
    parts = hamamatsu_parts(path)
    if missing := [item.name for item in parts if not item.is_file()]:
        raise InputError(f"needs {', '.join(missing)} beside it, which is not there")
    return parts


def hamamatsu_parts(path: Path) -> list[Path]:
    """List the files that a .vms or .vmu file names, whether they are there or not.

    Raises:
        OSError: the file cannot be read.
    """
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    parser = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",))
    try:
        parser.read_string(text)
    except configparser.Error:
        return []  # OpenSlide says what is wrong with it
    names = [
        Path(value.strip()).name
        for section in parser.sections()
        for key, value in parser.items(section)
        if key.startswith(("imagefile", "mapfile", "optimisationfile", "macroimage"))
    ]
    return [path.parent / name for name in dict.fromkeys(names) if name]
