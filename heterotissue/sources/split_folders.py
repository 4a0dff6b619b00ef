"""Splits that folders state: slides and tiles below train/, val/ and test/."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from heterotissue.sources.patients import refuse_without_split
from heterotissue.sources.records import Found, shown, some
from heterotissue.sources.table_values import SPLITS
from shared.contracts.base import Split
from shared.errors import InputError

_LIKE_SPLIT = re.compile(
    r"(?i)(?:.*[^a-z])?(train|training|val|valid|validation|test|testing|hold[^a-z]?out|eval"
    r"|evaluation|external|internal)(?:set|data|images|tiles|slides)?(?:[^a-z].*)?"
)
"""Names of folders that may be meant as splits: test_set, tiles-train, val1, external."""


def split_of(below: Path) -> Split | None:
    """Return the split that the folders of a file name; None if none does.

    Args:
        below: path of the file below the folder that was searched.

    Raises:
        InputError: they name several splits.
    """
    named = {SPLITS[part.lower()]: part for part in below.parent.parts if part.lower() in SPLITS}
    if len(named) > 1:
        raise InputError(
            f"lies in the folders of several splits ({', '.join(map(shown, named.values()))}): "
            "move it, or name those folders otherwise that are no splits"
        )
    return next(iter(named), None)


def check_split_folders(
    splits: Mapping[Path, Split | None], found: Found, what: str, remedy: str = ""
) -> None:
    """Note which splits are those of folders, and folders that may be meant as splits.

    Args:
        splits: path below the searched folder → split by its folders.
        found: receives the notes.
        what: 'slides' or 'tiles'.
        remedy: what else can be done, for the error.

    Raises:
        InputError: only some have a split, so that others would be divided among them.
    """
    counts = Counter(split for split in splits.values() if split)
    without = [below for below, split in splits.items() if split is None]
    parts = {part for below in without for part in below.parent.parts}
    like = sorted(part for part in parts if _LIKE_SPLIT.fullmatch(part))
    text = f"folders {some(map(shown, like))} are not taken for splits"
    if counts and without:
        raise InputError(
            (f"{text}, though others are: " if like else "")
            + f"{len(without)} {what} lie in no folder named train, val or test "
            f"({some(map(shown, without))}), as {counts.total()} others do, and would be drawn "
            f"into training or test: name their folders so, or move the {what} into such folders "
            f"or out of the searched folder{remedy}"
        )
    if like:
        found.notes.append(f"{text}: name them train, val or test if they are")
    if counts:
        listed = ", ".join(f"{counts[part]} {part}" for part in ("train", "val", "test")
                           if counts[part])  # fmt: skip
        alone = f", so that all {what} are in one" if len(counts) == 1 else ""
        found.notes.append(f"splits are those that the folders name ({listed}){alone}")


def add_splits(found: Found) -> None:
    """Set the split of every slide that its folders state, and that no table does.

    Folders count below the one that was searched. Where several files or folders were given,
    those count too by which these differ, as in `train/*.svs test/*.svs`.

    Raises:
        InputError: only some slides have a split by their folders, and others have none.
    """
    roots = {_absolute(entry.path).parents[len(entry.below.parts) - 1] for entry in found.slides}
    if not roots:
        return
    base = Path(os.path.commonpath(roots))
    slides, drawn, differing = [], {}, []
    for entry in found.slides:
        below = _absolute(entry.path).relative_to(base)
        try:
            split = split_of(below)
        except InputError as error:
            if entry.split is None:
                found.refuse(entry.path, str(error))
                continue
            split = None
        if entry.split is None:
            drawn[below] = split
        elif split not in {None, entry.split}:
            differing.append(f"{shown(below)}: {entry.split}")
        slides.append(replace(entry, split=entry.split or split))
    found.slides = slides
    refuse_without_split(found)
    check_split_folders(
        drawn, found, "slides", "; or give a table with a column split, which comes first"
    )
    if differing:
        found.notes.append(
            f"the table gives {len(differing)} slides another split than their folders name; the "
            f"table counts: {some(differing)}"
        )


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 (links stay: their own folders are meant)
