"""The slides that tables and QuPath projects list."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from heterotissue.sources.files import SLIDES, Finder
from heterotissue.sources.places import Places
from heterotissue.sources.projects import PROJECT, read_project
from heterotissue.sources.records import Found, SlideEntry, composed, shown, some, with_facts
from heterotissue.sources.table_values import (
    SPLITS,
    as_on_disk,
    is_there,
    label_formats,
    labels_of,
    meant,
    mpp_of,
    near_files,
    one_of,
    square_mpp,
)
from heterotissue.sources.tables import Rows, Table, file_of, names_of, stated_files
from shared.errors import InputError, quoted
from shared.patients import folded


def find_by_table(
    table: Path, folders: list[Path], leave_out: Path | None, labels: Path | None = None
) -> Found:
    """Find the slides that a table or a QuPath project lists.

    A path of a row is absolute, or relative to the table or to one of the folders. Where the
    row has only a file's name, or no file is at its path, the slide is looked for by its name in
    the folders: of the latter, only one that lies in the folders that the path states.
    Slides of the folders that the table does not list are left out.

    Args:
        table: a CSV file, or a project.qpproj of QuPath.
        folders: folders of slides, or slides; may be empty.
        leave_out: folder that is not searched.
        labels: folder of annotations, whose paths may be relative to it.

    Raises:
        InputError: the table cannot be read, or lists no slide.
    """
    found = Found()
    if table.suffix.lower() == PROJECT:
        rows, faults = read_project(table)
    else:
        listed = Table.read(table)
        rows, faults = _with_patients(listed, found), listed.faults
        if listed.unknown:
            found.notes.append(f"{table.name}: columns not read: {some(listed.unknown, 12)}")
    if not rows:
        raise InputError(f"{table} lists no slide")
    around = Finder(leave_out)
    for folder in folders:
        around.add(folder)
    inside = around.finish().slides
    files = {entry.path.resolve(): entry.path for entry in (*inside, *_beside(table))}
    known = _Known(table.parent, folders, inside, Places(stated_files(rows), files.values()))
    stated = {column for _, row in rows for column in row}
    seen: dict[Path, dict[str, str]] = {}
    named: dict[str, int] = {}
    there: set[Path] = set()
    for number, row in rows:
        place = f"{table.name}, row {number}"
        try:
            entry = known.entry(row)
            real, facts = entry.path.resolve(), row | {"path": ""}
            there.add(real)
            if number in faults:
                raise InputError(faults[number])
            if real not in seen:
                made = _with_row(entry, row, [table.parent, *([labels] if labels else [])])
                if made.name and named.setdefault(made.name, number) != number:
                    raise InputError(
                        f"gives the name {quoted(made.name)} of row {named[made.name]} again: give "
                        "each slide a name of its own, or leave out the names, so that slides have "
                        "those of their files"
                    )
                if "patient" in stated - set(row):
                    made = replace(made, without_patient=place)
                if "split" in stated - set(row):
                    made = replace(made, without_split=place)
                found.slides.append(made)
            elif seen[real] != facts:
                found.slides = [item for item in found.slides if item.path.resolve() != real]
                raise InputError(
                    f"lists {entry.path.name} again, with other values, so no row of it is taken: "
                    "remove those that are wrong"
                )
            seen.setdefault(real, facts)
        except InputError as error:
            found.refuse(place, faults.get(number, str(error)))
    rest = [shown(item.path.name) for item in inside if item.path.resolve() not in there]
    if rest:
        found.notes.append(f"{table.name} does not list {len(rest)} slides: left out {some(rest)}")
    return found


def _beside(table: Path) -> list[SlideEntry]:
    """Return the slides in the folder of a table, but not those in folders below it."""
    finder = Finder()
    with suppress(OSError):  # a folder that may be entered, but not listed
        for path in sorted(table.parent.iterdir()):
            if path.suffix.lower() in SLIDES and is_there(path):
                finder.add(path)
    return finder.finish().slides


def _with_patients(table: Table, found: Found) -> Rows:
    """Return a table's rows, whose names have the patient in front if they count his slides.

    So it is where a name repeats, but not within a patient: slides 1 and 2 of P7, 1 and 2 of P8.
    """
    files: dict[str, dict[str, str | None]] = {}
    for _, row in table.rows:
        if {"path", "name"} <= set(row):
            files.setdefault(row["name"], {})[row["path"]] = row.get("patient")
    repeated = {name: list(owners.values()) for name, owners in files.items() if len(owners) > 1}
    for owners in repeated.values():
        if len({folded(owner) for owner in owners if owner}) < len(owners):
            return table.rows
    if not repeated:
        return table.rows
    name = next(iter(repeated))
    found.notes.append(
        f"{table.path.name}: slides of several patients have one name, such as {quoted(name)}: all "
        f"get the patient in front, as in {quoted(f'{repeated[name][0]}-{name}')}"
    )
    return [
        (number, row | {"name": f"{row['patient']}-{row['name']}"})
        if {"path", "name", "patient"} <= set(row)
        else (number, row)
        for number, row in table.rows
    ]


class _Known:
    """Finds the slides of rows.

    Args:
        place: folder of the table.
        folders: folders that were searched.
        slides: what was found there.
        places: paths of the rows, and files of the slides.
    """

    def __init__(
        self, place: Path, folders: list[Path], slides: list[SlideEntry], places: Places
    ) -> None:
        self._place, self._folders, self._places = place, folders, places
        self._by_name: dict[str, list[SlideEntry]] = {}
        for entry in slides:
            for name in {*names_of(entry.path), composed(entry.below.as_posix())}:
                self._by_name.setdefault(name, []).append(entry)
        self._folded: dict[str, list[str]] = {}
        for name, entries in self._by_name.items():
            names = [shown(entry.below) for entry in entries]
            self._folded.setdefault(name.casefold(), []).extend(names)

    def entry(self, row: dict[str, str]) -> SlideEntry:
        """Find the slide of one row. Raises `InputError` if it is not there, or not clear."""
        if not (row.get("path") or row.get("name")):
            raise InputError("names no slide: it has neither a path nor a name")
        given = file_of(row)
        bases = (self._place, *self._folders) if "path" in row else ()
        paths = [as_on_disk(base / given) for base in bases]
        for path in paths:
            if is_there(path):
                return _opened(path)
        beside = as_on_disk(self._place / given.name)
        found = {entry.path.resolve(): entry for entry in self._of_name(given, row)}
        if paths and is_there(beside):
            found.setdefault(beside.resolve(), SlideEntry(beside, Path(beside.name)))
        if not found:
            raise InputError(self._missing(given, paths))
        fitting: dict[int, list[SlideEntry]] = {}
        for entry in found.values():
            common = self._places.in_common(given, entry.path, entry.below)
            if common is not None:
                fitting.setdefault(common, []).append(entry)
        if not fitting:
            others = some(_in_folder(entry) for entry in found.values())
            raise InputError(
                f"{shown(given)} is not there; {others}, of the same name, may be another slide: "
                "if it is meant, write its path"
            )
        first, *others_too = fitting[max(fitting)]
        if others_too:
            where = some(_in_folder(entry) for entry in (first, *others_too))
            raise InputError(f"{shown(given)} may be any of {where}: give its path")
        return _opened(first.path) if first.path == beside else first

    def _of_name(self, given: Path, row: dict[str, str]) -> list[SlideEntry]:
        names = map(composed, (given.as_posix(), given.name, row.get("name", "")))
        return next((self._by_name[name] for name in names if name in self._by_name), [])

    def _missing(self, given: Path, paths: list[Path]) -> str:
        looked = f"in {some(map(str, self._folders))}" if self._folders else f"beside {self._place}"
        near = [name for path in paths for name in near_files(path, SLIDES)]
        if paths:
            near += near_files(self._place / given.name, SLIDES)
        for name in (given.name, given.stem):
            near += self._folded.get(composed(name).casefold(), [])
        return f"{shown(given)} is not there, and no slide of its name is {looked}{meant(near)}"


def _in_folder(entry: SlideEntry) -> str:
    """Return a slide's path below the folder that was searched, with one folder at least."""
    inside = len(entry.below.parts) > 1
    return shown(entry.below if inside else Path(entry.path.absolute().parent.name) / entry.below)


def _opened(path: Path) -> SlideEntry:
    """Return the entry of one file. Raises `InputError` if it cannot be a slide."""
    finder = Finder()
    finder.add(path)
    found = finder.finish()
    if found.slides:
        return found.slides[0]
    reasons = [f"{item.path} {item.reason}" for item in found.refused] or found.notes
    raise InputError(reasons[0] if reasons else f"{shown(path)} is no slide")


def _with_row(entry: SlideEntry, row: dict[str, str], places: list[Path]) -> SlideEntry:
    """Add what a row says of a slide. Raises `InputError` for a value that is not valid."""
    return replace(
        with_facts(
            entry,
            name=row.get("name") if "path" in row else None,
            patient=row.get("patient"),
            site=row.get("site"),
            mpp=square_mpp(mpp_of(row.get("mpp")), mpp_of(row.get("mpp_y"))),
            labels=labels_of(row.get("labels"), places),
            label_format=one_of("label format", row.get("label_format"), label_formats()),
            split=one_of("split", row.get("split"), SPLITS),
        )
    )
