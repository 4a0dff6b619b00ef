"""What is known of the files of a cohort before they are in the store."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from shared.contracts.annotations import LabelFormat
from shared.contracts.base import Split
from shared.errors import printable


@dataclass(frozen=True)
class Refusal:
    """A file, or a row of a table, that is left out, and why; the others go on."""

    path: str
    reason: str


@dataclass(frozen=True)
class SlideEntry:
    """A slide on disk, with what a table or the user says of it.

    Attributes:
        path: the slide's main file.
        parts: the slide's other files, if it consists of several.
        below: path of the file below the folder that was searched; its name alone if it was given.
        name: name of the slide in the cohort; None: made of the file's name.
        patient: patient of the slide; None: not known.
        stated_patient: patient that the file itself states.
        without_patient: table and row that leave out the patient, where other rows state theirs.
        without_split: table and row that leave out the split, where other rows state theirs.
        site: hospital or scanner; None: not known.
        mpp: µm per pixel, which overrides what the slide states.
        labels: the annotation; None: looked for by its name.
        label_format: format of the annotation; None: guessed by its suffix.
        split: split of the slide; None: assigned.
    """

    path: Path
    below: Path
    parts: tuple[Path, ...] = ()
    name: str | None = None
    patient: str | None = None
    stated_patient: str | None = None
    without_patient: str | None = None
    without_split: str | None = None
    site: str | None = None
    mpp: float | None = None
    labels: Path | None = None
    label_format: LabelFormat | None = None
    split: Split | None = None


@dataclass
class Found:
    """Slides that were found, files that were refused, and remarks for the user."""

    slides: list[SlideEntry] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def refuse(self, path: Path | str, reason: str) -> None:
        """Leave out a file."""
        self.refused.append(Refusal(shown(path), shown(reason)))


def shown(path: Path | str) -> str:
    """Return a path, or text that names one, as it can be printed and stored.

    Signs that cannot be seen, and what is not valid UTF-8, are escaped.
    """
    return printable(os.fsencode(path).decode("utf-8", "backslashreplace"))


def is_utf8(text: str) -> bool:
    """Say whether a path is valid UTF-8, as all texts of tables and records are."""
    return text == text.encode("utf-8", "replace").decode()


def composed(name: str) -> str:
    """Return a name in the Unicode form in which names are compared.

    macOS and its archives write a letter and its accent as two signs, tables as one.
    """
    return unicodedata.normalize("NFC", name)


def some(names: Iterable[str], most: int = 5) -> str:
    """List names, the first `most` of them in full."""
    listed = list(names)
    rest = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {rest} more" if rest > 0 else "")


def explain(error: OSError) -> str:
    """Say in a few words why a file cannot be read."""
    return error.strerror or str(error)


def with_facts(entry: SlideEntry, **facts: object) -> SlideEntry:
    """Return an entry with those of the given facts that are not None."""
    known = {name: value for name, value in facts.items() if value is not None}
    return replace(entry, **known)  # type: ignore[arg-type]
