"""Patients of slides and tiles, by a pattern or a table that the user gives."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from heterotissue.sources.places import Places
from heterotissue.sources.records import Found, SlideEntry, shown, some
from heterotissue.sources.tables import TABLES, Table, stated_files
from shared.errors import InputError, quoted
from shared.patients import folded, origin_of


class Patients:
    """Says which patient a file is of.

    Args:
        rule: a regular expression, whose first group (or else the whole match) is the patient; or
            the path of a table with a column of files or slides and a column of patients.
        files: all slides or tiles.

    Raises:
        InputError: the expression is not valid, or the table has no such columns.
    """

    def __init__(self, rule: str, files: Iterable[Path]) -> None:
        self.rule = rule
        self._table: Table | None = None
        path = Path(rule).expanduser()
        if path.suffix.lower() in TABLES:
            self._table = Table.read(path)
            if "patient" not in self._table.columns or not {"path", "name"} & self._table.columns:
                raise InputError(
                    f"{path} needs a column of slides ('path' or 'slide') and one of patients "
                    f"('patient'); it has {', '.join(self._table.header)}"
                )
            self._places = Places(stated_files(self._table.rows), files)
        else:
            self._pattern = pattern(rule, "--patient")

    def unread(self) -> list[str]:
        """Return a note on the columns of the table that are not read."""
        if self._table is None or not (rest := self._table.headings_but("path", "name", "patient")):
            return []
        return [
            f"{self.rule}: of a table given by --patient only slides and patients are read, not "
            f"{some(rest, 12)} (given in place of the slides, all of it is read)"
        ]

    def of(self, path: Path, below: Path) -> str | None:
        """Return the patient of a file; None if the rule does not say who it is.

        Args:
            path: the file.
            below: its path below the folder that was searched, where a pattern is looked for if
                the file's name does not have it.

        Raises:
            InputError: rows of the table tell several patients of the file.
        """
        if self._table is not None:
            row = self._table.row_of(path, below, self._places)
            return row.get("patient") if row else None
        return matched(self._pattern, path.name) or matched(self._pattern, below.as_posix())


def pattern(text: str, option: str) -> re.Pattern[str]:
    """Compile a regular expression of the user. Raises `InputError` if it is not valid."""
    try:
        return re.compile(text)
    except re.error as error:
        raise InputError(f"{option} {quoted(text)} is no regular expression: {error}") from error


def matched(expression: re.Pattern[str], text: str) -> str | None:
    """Return the first group of a match, or the whole match without groups, as `shown` writes it;
    None if there is no match, or an empty one."""
    match = expression.search(text)
    if match is None:
        return None
    return shown((match[1] if expression.groups else match[0]) or "") or None


def add_patients(found: Found, rule: str | None) -> None:
    """Set the patient and the site of every slide of which they are known.

    A table's own columns come first, then `rule`, then what DICOM states, then names in a
    well-known form. Slides that `rule` does not fit are refused.

    Raises:
        InputError: `rule` fits no slide.
    """
    patients = Patients(rule, [entry.path for entry in found.slides]) if rule else None
    found.notes += patients.unread() if patients else []
    kept: list[SlideEntry] = []
    lost: list[SlideEntry] = []
    for entry in found.slides:
        by_rule = None
        if patients and not entry.patient:
            try:
                by_rule = patients.of(entry.path, entry.below)
            except InputError as error:
                found.refuse(entry.path, str(error))
                continue
        stated = entry.patient or by_rule or entry.stated_patient
        origin = origin_of(entry.path.name, stated, entry.site)
        if patients and not entry.patient and by_rule is None:
            lost.append(entry)
        elif entry.without_patient and origin.patient is None:
            found.refuse(
                entry.without_patient,
                "states no patient, as other rows do, so slides of one patient might be divided: "
                "fill the cells down, or write the slide's own name if its patient has no other",
            )
        else:
            kept.append(replace(entry, patient=origin.patient, site=origin.site))
    if lost and not kept:
        raise InputError(
            f"--patient {quoted(rule)} fits no slide, such as {shown(lost[0].path.name)}: its "
            "first "
            "group in (brackets) must be the patient; or give a table with columns slide, patient"
        )
    _note_folders(found, kept)
    for entry in lost:
        found.refuse(entry.path, f"--patient {quoted(rule)} tells no patient of it")
    found.slides = kept
    known = {entry.patient for entry in kept}
    if len(kept) > 1 and len(known) == 1 and (only := known.pop()):
        found.notes.append(
            f"all slides are of one patient, {quoted(only)}, so none can be held out for tests: "
            "if they "
            "are not, say whose they are by --patient"
        )


def refuse_without_split(found: Found) -> None:
    """Refuse slides whose rows leave out the split that other rows state, as merged cells do.

    Those are kept whose folders, or whose patients' other slides, have one.
    """
    given = {folded(entry.patient) for entry in found.slides if entry.patient and entry.split}
    kept = []
    for entry in found.slides:
        known = entry.split or (entry.patient and folded(entry.patient) in given)
        if entry.without_split and not known:
            found.refuse(
                entry.without_split,
                "states no split, as other rows do, so the slide would be drawn into training or "
                "test: fill the cells down, or leave the column out to have all slides drawn",
            )
        else:
            kept.append(entry)
    found.slides = kept


def _note_folders(found: Found, slides: list[SlideEntry]) -> None:
    """Point out folders of several slides whose patients are not known: each may be a patient's."""
    unknown = [entry for entry in slides if entry.patient is None and entry.split is None]
    folders = Counter(entry.path.absolute().parent for entry in unknown)
    several = [shown(folder.name) for folder, count in folders.items() if count > 1]
    if len(several) > 1:
        found.notes.append(
            f"the patients of {len(unknown)} slides are not known. If a folder is a patient's "
            f"({some(several, 3)}), say so by --patient '([^/]+)/[^/]+$', or one patient's slides "
            "may be in more than one split"
        )
