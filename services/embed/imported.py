"""Features from other tools: which file is whose, and whether their patches are the cohort's."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from services.embed.places import Places, compare_places
from shared.arrays import Float64, Int64
from shared.contracts.ingest import PatchGrid, SlideRecord
from shared.errors import InputError, quoted
from shared.features import FeaturesFile

SUFFIXES = (".h5", ".hdf5")

TOLERANCE = 0.05
"""Largest relative difference of sizes that count as equal. Tools round magnifications: 0.5 µm
per pixel and a slide's 0.499 are both 20x."""

_FEWEST_GAPS = 3
"""Fewest equal distances of neighbours that tell the spacing of patches."""

_RATIO_OF_NOMINAL = (0.6, 1.75)
"""10/magnification may differ from the µm per pixel by these factors: TRIDENT calls 0.3 to 0.6
µm/px 20x, and 0.16 to 0.3 µm/px 40x."""


def match_files(
    files: Iterable[str], slides: dict[str, SlideRecord]
) -> tuple[dict[str, str], dict[str, str]]:
    """Find the file of each slide.

    A file is `<name>.h5`, by the slide's original file name, with or without its suffix, or by
    its name in the cohort. Other tools know the file name alone, so where a file may be one
    slide's by its file name and another's by its name in the cohort, it is the first one's. Case
    does not count, nor which signs other than letters and digits stand between these, unless
    only that tells whose a file is.

    Args:
        files: names of files.
        slides: name of each slide of the cohort → its record.

    Returns:
        Slide → file, without slides that have none; and slide → why its file is not clear.
    """
    found: dict[str, list[str]] = {}
    for file in files:
        for suffix in SUFFIXES:
            if file.lower().endswith(suffix):
                found.setdefault(_plain(file[: -len(suffix)]), []).append(file)
    of_file = {name: _file_names(record) for name, record in slides.items()}
    count = Counter(text for texts in of_file.values() for text in texts)
    matches: dict[str, str] = {}
    unclear: dict[str, str] = {}
    written: set[str] = set()
    for name, record in slides.items():
        by_name = found.get(_plain(name), [])
        # A file name that several slides have says nothing where their own names do.
        texts = [text for text in of_file[name] if count[text] == 1 or not by_name]
        by_file = {file for text in texts for file in found.get(text, [])}
        elsewhere = count[_plain(name)] == 1 and _plain(name) not in of_file[name]
        own = sorted(by_file | set(() if elsewhere else by_name))
        stems = {name, PurePosixPath(record.source).stem}
        exact = [file for file in own if PurePosixPath(file).stem in stems]
        if len(own) > 1 and len(exact) != 1:
            unclear[name] = f"slide {name} has several files of features: {', '.join(own)}"
        elif own:
            matches[name] = (exact or own)[0]
            written |= {name} if exact else set()
    owners: dict[str, list[str]] = {}
    for name, file in matches.items():
        owners.setdefault(file, []).append(name)
    for file, names in owners.items():
        by_letter = [name for name in names if name in written]
        owner = names[0] if len(names) == 1 else by_letter[0] if len(by_letter) == 1 else None
        for name in set(names) - {owner}:
            del matches[name]
            if owner is None:
                every = ", ".join(names)
                unclear[name] = f"{file} may belong to each of the slides {every}: rename it"
    return matches, unclear


def widths_of(folder: Path, files: Iterable[str]) -> dict[str, int]:
    """Return the width of the features in each of a folder's files that can be read."""
    widths = {}
    for name in files:
        with suppress(InputError, OSError), FeaturesFile(folder / name) as file:
            widths[name] = file.dim
    return widths


def usual_width(widths: Mapping[str, int]) -> int | None:
    """Return the width of features that most files have; None if there are no files.

    Args:
        widths: file → width of its features.

    Raises:
        InputError: no width is that of most files.
    """
    counts = Counter(widths.values()).most_common()
    if len(counts) > 1 and counts[0][1] == counts[1][1]:
        owners = []
        for width, count in counts:
            names = [name for name, own in widths.items() if own == width]
            more = ", …" if count > len(names[:5]) else ""
            owners.append(f"{width} in {count} ({', '.join(names[:5])}{more})")
        raise InputError(
            f"features have different widths: {'; '.join(owners)}. They are of different encoders: "
            "put those of each into a folder of their own, and import it with its own --encoder"
        )
    return counts[0][0] if counts else None


def check_owner(where: str, stated: str | None, name: str, slide: SlideRecord) -> None:
    """Check that the name of a slide which a file of features states is that of its slide.

    Args:
        where: name of the file, for messages.
        stated: name that the file states; None: it states none.
        name: the cohort's name of the slide.
        slide: the slide.

    Raises:
        InputError: it is another slide's.
    """
    if stated is None:
        return
    path = PurePosixPath(stated.replace("\\", "/"))
    own = {_plain(name), *_file_names(slide)}
    if not own & {_plain(stated), _plain(path.name), _plain(path.stem)}:
        raise InputError(
            f"{where} states that it is of slide {quoted(stated)}, not of {quoted(name)}: if it "
            "is that "
            "slide, renamed, change the attribute 'name' in the file too"
        )


def _file_names(record: SlideRecord) -> set[str]:
    """Return the original file name of a slide, with and without its suffix, as it is compared."""
    source = PurePosixPath(record.source)
    return {_plain(source.name), _plain(source.stem)}


def _plain(text: str) -> str:
    folded = unicodedata.normalize("NFC", text).casefold()
    return re.sub(r"[\W_]+", "-", folded).strip("-")


def checked(
    where: str, file: FeaturesFile, slide: SlideRecord, grid: PatchGrid, own: Int64
) -> tuple[NDArray[np.bool_], Places]:
    """Check that features are those of a slide's patches.

    Args:
        where: name of the file, for messages.
        file: the open file, whose features are read in batches.
        slide: the slide.
        grid: size, resolution and spacing of the cohort's patches.
        own: int64 (n, 2), level-0 corners of the slide's own patches.

    Returns:
        Which of the file's patches are kept, bool (N,): those of which at most half hangs over
        the edge of the slide (tools that lay a grid over the whole slide have others); and how
        their places fit the slide's own patches.

    Raises:
        InputError: size, resolution, spacing or places of the patches are not the slide's, or
            rows are doubled, zero or all alike.
    """
    _check_stated(where, file.stated, slide, grid)
    _check_rows(where, file)
    side = grid.size * grid.mpp / np.array([slide.mpp, slide.mpp_y])
    step = grid.stride * grid.mpp / np.array([slide.mpp, slide.mpp_y])
    size = np.array([slide.width, slide.height])
    outside = np.any((file.coords < 0) | (file.coords >= size), axis=1)
    if outside.any():
        x, y = file.coords[outside][0]
        raise InputError(
            f"{where}: {outside.sum()} of {len(outside)} patches begin outside {slide.slide} "
            f"({slide.width}×{slide.height} px), such as ({x}, {y}): was it made from another "
            "slide, or are its coordinates not of level 0?"
        )
    inside: NDArray[np.bool_] = np.all(file.coords + side / 2 <= size, axis=1)
    _check_spacing(where, file.coords[inside], step)
    return inside, compare_places(where, file.coords[inside], own, step)


def _check_stated(
    where: str, stated: Mapping[str, float], slide: SlideRecord, grid: PatchGrid
) -> None:
    """Compare what the file states with the slide and the grid."""
    for key, length in (("level0_width", slide.width), ("level0_height", slide.height)):
        if key in stated and stated[key] != length:
            raise InputError(
                f"{where} states {key} {stated[key]:.0f}, but {slide.slide} has {length} px: it "
                "was made from another slide"
            )
    power = stated.get("level0_magnification")
    if power is not None:
        low, high = _RATIO_OF_NOMINAL
        if not power or not low <= 10 / power / slide.mpp <= high:
            raise InputError(
                f"{where} states {power:g}x at level 0, but {slide.slide} has {slide.mpp:.4g} "
                f"µm/px ({10 / slide.mpp:.3g}x)"
            )
    side = grid.size * grid.mpp / slide.mpp
    for source, stated_side in _sides(where, stated, slide):
        if abs(stated_side - side) > TOLERANCE * side + 1:
            raise InputError(
                f"{where} has patches of {stated_side:.0f} level-0 px ({source}), the cohort's "
                f"are {side:.0f} ({grid.size} px at {grid.mpp:g} µm/px): ingest the slides with "
                "--set patches.size and patches.mpp of these patches, or make the features again"
            )
    if "patch_size_level0" in stated and stated.get("patch_size"):
        mpp = stated["patch_size_level0"] / stated["patch_size"] * slide.mpp
        if abs(mpp - grid.mpp) > TOLERANCE * grid.mpp + slide.mpp / stated["patch_size"]:
            raise InputError(
                f"{where} has patches at {mpp:.4g} µm/px, the cohort's are at {grid.mpp:g}: "
                f"ingest the slides with --set patches.mpp={mpp:.4g}"
            )


def _sides(where: str, stated: Mapping[str, float], slide: SlideRecord) -> list[tuple[str, float]]:
    """Return each side of a patch in level-0 pixels that the attributes state, and how."""
    found = []
    if "patch_size_level0" in stated:
        found.append(("patch_size_level0", stated["patch_size_level0"]))
    if "patch_size" not in stated:
        return found
    size = stated["patch_size"]
    target, power = stated.get("target_magnification"), stated.get("level0_magnification")
    if target and power:
        found.append((f"patch_size {size:g} at {target:g}x", size * power / target))
    if "patch_level" not in stated:
        return found
    level = stated["patch_level"]
    if "downsample" in stated:
        factor = stated["downsample"]
    elif stated.get("level_dim"):
        factor = slide.width / stated["level_dim"]
    elif level == 0:
        factor = 1.0
    else:
        raise InputError(
            f"{where} states patch_level {level:g}, but neither downsample nor level_dim, which "
            "tell how large its patches are"
        )
    if level >= slide.levels:
        raise InputError(
            f"{where} states patch_level {level:g}, but {slide.slide} has {slide.levels} levels"
        )
    factor *= stated.get("custom_downsample", 1.0)
    found.append((f"patch_size {size:g} on patch_level {level:g}", size * factor))
    return found


def _check_rows(where: str, file: FeaturesFile) -> None:
    """Refuse doubled coordinates, and features that are zero or all alike."""
    total = len(file)
    _, first, counts = np.unique(file.coords, axis=0, return_index=True, return_counts=True)
    if len(first) < total:
        x, y = file.coords[first[counts.argmax()]]
        raise InputError(
            f"{where} has {total - len(first)} doubled coordinates among {total}, such as "
            f"({x}, {y}), {counts.max()} times"
        )
    zero, alike, unit = 0, True, None
    for rows in file.batches():
        norms = np.linalg.norm(rows.astype(np.float64), axis=1)
        zero += int((norms < 1e-12).sum())
        units = rows / np.maximum(norms, 1e-12)[:, None]
        unit = units[0] if unit is None else unit
        alike = alike and bool(np.abs(units - unit).max() < 1e-6)
    if zero:
        raise InputError(
            f"{where}: the features of {zero} of {total} patches are zero: make them again"
        )
    if total > 1 and alike:
        raise InputError(f"{where}: all {total} patches have the same features: make them again")


def _check_spacing(where: str, coords: Int64, step: Float64) -> None:
    """Compare the most common distance of neighbours with the step (x, y), in level-0 pixels."""
    for axis, name in enumerate("xy"):
        across = coords[:, 1 - axis]
        order = np.lexsort((coords[:, axis], across))
        same = np.diff(across[order]) == 0
        gaps = Counter(np.diff(coords[order, axis])[same].tolist())
        if not gaps:
            continue
        gap, count = gaps.most_common(1)[0]
        if count < _FEWEST_GAPS or abs(gap - step[axis]) <= TOLERANCE * step[axis] + 1:
            continue
        ratio = step[axis] / gap
        raise InputError(
            f"{where} has a patch every {gap} level-0 px in {name}, the cohort has one every "
            f"{step[axis]:.0f}"
            + (
                f": its coordinates may be of a level that is {ratio:.0f} times smaller, or"
                if ratio > 1 and abs(ratio - round(ratio)) < TOLERANCE
                else ":"
            )
            + " ingest the slides with --set patches.stride of these patches"
        )
