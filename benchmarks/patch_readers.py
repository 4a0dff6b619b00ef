"""Other libraries that read patches, each at its best settings, for `benchmarks.data_path`.

They are no dependencies of the project. Those that can be imported are measured:

    pip install --target DIR --no-deps fastslide histoslice tiatoolbox <what they import>
    python -m benchmarks.data_path --packages DIR
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openslide

from shared.arrays import UInt8

CACHE = 256 << 20
"""Bytes of decoded tiles that a reader may keep, where it can be told."""

OTHER_PATCH = 10
"""Mean difference, grey levels, above which a patch is another one."""

Read = Callable[[int, int, int], UInt8]
"""Reads a patch of level 0 by x, y and side: uint8 RGB (side, side, 3)."""


def open_slide(path: Path) -> Read:
    """Open a slide with OpenSlide, as most tools do."""
    source = openslide.OpenSlide(path)
    source.set_cache(openslide.OpenSlideCache(CACHE))
    return lambda x, y, side: np.asarray(source.read_region((x, y), 0, (side, side)).convert("RGB"))


def open_fastslide(path: Path) -> Read:
    """Open a slide with fastslide, which has its own decoders."""
    source = _module("fastslide").FastSlide.from_file_path(str(path), cache=CACHE)
    return lambda x, y, side: np.asarray(
        source.read_region(location=(x, y), level=0, size=(side, side)).numpy()
    )[..., :3]


def open_histoslice(path: Path, backend: str) -> Read:
    """Open a slide with histoslice, by libvips or by OpenSlide."""
    source = _module("histoslice").SlideReader(str(path), backend=backend)
    return lambda x, y, side: np.asarray(source.read_region((x, y, side, side), level=0))


def open_tiatoolbox(path: Path, kind: str) -> Read:
    """Open a slide with tiatoolbox, by OpenSlide or by tifffile."""
    source = getattr(_module("tiatoolbox.wsicore.wsireader"), kind)(path, mpp=(0.5, 0.5), power=20)
    return lambda x, y, side: np.asarray(
        source.read_rect(location=(x, y), size=(side, side), resolution=0, units="level")
    )


READERS: dict[str, Callable[[Path], Read]] = {
    "OpenSlide": open_slide,
    "fastslide": open_fastslide,
    "histoslice (libvips)": lambda path: open_histoslice(path, "PYVIPS"),
    "histoslice (OpenSlide)": lambda path: open_histoslice(path, "OPENSLIDE"),
    "tiatoolbox (OpenSlide)": lambda path: open_tiatoolbox(path, "OpenSlideWSIReader"),
    "tiatoolbox (tifffile)": lambda path: open_tiatoolbox(path, "TIFFWSIReader"),
}


def usable(path: Path, side: int) -> tuple[dict[str, float], dict[str, str]]:
    """Find the readers that are installed, and that give the same patch of a slide as OpenSlide.

    Returns:
        Name of each reader → mean difference from OpenSlide's pixels, grey levels, of which those
        that scale colours up in another way have some; and name → why it is left out.
    """
    logging.disable(logging.INFO)  # a line for each patch, where libvips and tiatoolbox meet
    found: dict[str, float] = {}
    absent: dict[str, str] = {}
    expected = open_slide(path)(side, side, side)
    for name, open_with in READERS.items():
        try:
            patch = open_with(path)(side, side, side)
        except Exception as error:  # of any library
            absent[name] = f"{type(error).__name__}: {error}"[:200]
            continue
        off = np.abs(patch.astype(int) - expected).mean() if patch.shape == expected.shape else 255
        if off > OTHER_PATCH:
            absent[name] = f"another patch, {off:.1f} grey levels off on average"
        else:
            found[name] = round(float(off), 2)
    return found, absent


def _module(name: str) -> Any:
    return importlib.import_module(name)
