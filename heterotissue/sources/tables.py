"""Tables of slides: CSV files of a lab, TRIDENT's lists, CLAM's tables."""

from __future__ import annotations

import csv
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from heterotissue.sources.annotations import stem_of
from heterotissue.sources.files import SLIDES
from heterotissue.sources.places import Places
from heterotissue.sources.records import composed, some
from heterotissue.sources.table_values import path_of
from shared.errors import InputError
from shared.patients import folded

TABLES = {".csv", ".tsv", ".tab"}
Rows = list[tuple[int, dict[str, str]]]
"""Number of each row in its file, and its values by column."""

SEPARATORS = "\t;,|"

COLUMNS = {
    "path": "path filepath fullpath slidepath wsipath wsi slidefile imagepath imagefile file "
            "filename image imagename uri",
    "name": "slide slideid slidename name imageid id",
    "patient": "patient patientid patientcode case caseid casesubmitterid subject subjectid "
               "participant participantid donor donorid",
    "site": "site siteid sitename center centre hospital institution institute dataprovider tss "
            "tissuesourcesite",
    "mpp": "mpp mppx micronsperpixel umperpixel umperpx µmperpx µm/px um/px pixelsize pixelsizeum "
           "pixelsizeµm pixelsizex pixelwidth",
    "mpp_y": "mppy pixelsizey pixelheight",
    "labels": "labels labelspath labelpath annotation annotations annotationpath annotationfile "
              "mask maskpath maskfile geojson xml",
    "label_format": "labelformat labelsformat annotationformat",
    "split": "split set subset partition",
}  # fmt: skip
"""Column → the headings that mean it, in small letters without spaces, '_' and '-'.

If a table has several headings of one column, the first of this list is read.
"""

OBJECTS = {"objecttype", "parent", "roi"}
"""Headings of QuPath's exported measurements, where 'Name' is that of an object on the image."""

NO_VALUE = {"na", "n/a", "#n/a", "nan", "none", "null", "-", "?", "unknown"}
"""What programmes write for an empty cell, in small letters."""


@dataclass(frozen=True)
class Table:
    """A table of slides.

    Attributes:
        path: the file.
        header: headings as the file has them.
        columns: those of `COLUMNS` that it has.
        rows: number of each row in the file, and its values by column; empty ones are left out.
        unknown: headings that mean no column.
        faults: number of each row that cannot be read, and why.
    """

    path: Path
    header: list[str]
    columns: set[str]
    rows: Rows
    unknown: list[str]
    faults: dict[int, str]

    @classmethod
    def read(cls, path: Path) -> Table:
        """Read a table with commas, semicolons, tabs or '|', in UTF-8, UTF-16 or Windows' own code.

        Raises:
            InputError: the file cannot be read, is no text, or has no column of slides.
        """
        lines = text_of(path).replace("\r\n", "\n").replace("\r", "\n").splitlines(keepends=True)
        first = next((n for n, line in enumerate(lines) if line.strip()), None)
        if first is None:
            raise InputError(f"{path} is empty")
        if lines[first].lower().startswith("sep="):  # Excel's own line
            first += 1
        try:
            widths = {
                sign: len(next(csv.reader(lines[first:], delimiter=sign), ()))
                for sign in SEPARATORS
            }
            delimiter = max(widths, key=widths.__getitem__)
            reader = csv.reader(lines[first:], delimiter=delimiter, skipinitialspace=True)
            parsed = [(reader.line_num + first, row) for row in reader]
        except csv.Error as error:
            raise InputError(f"{path} is no table: {error}") from error
        header = [item.strip() for item in parsed[0][1]] if parsed else []
        plain = [_plain(item) for item in header]
        places = {
            column: min((name for name in names.split() if name in plain), key=names.split().index)
            for column, names in COLUMNS.items()
            if set(names.split()) & set(plain)
        }
        if places.get("path") == "image" and places.get("name") == "name" and set(plain) & OBJECTS:
            del places["name"]
        read = {column: plain.index(heading) for column, heading in places.items()}
        unknown = [item for n, item in enumerate(header) if n not in read.values()]
        if not {"path", "name"} & set(read):
            raise InputError(
                f"{path} has no column of slides: give it a heading 'path' or 'slide' (it has "
                f"{some(header, 12) or 'none'}){_headings_below(lines, first)}"
            )
        rows = [
            (
                number,
                {c: row[p].strip() for c, p in read.items() if len(row) > p and _stated(c, row[p])},
            )
            for number, row in parsed[1:]
        ]
        rows = [(number, row) for number, row in rows if row]
        faults = {
            number: "has more values than there are headings: put those with a comma in quotes"
            for number, row in parsed[1:]
            if any(row[len(header) :])
        }
        return cls(path, header, set(read), rows, unknown, faults)

    def headings_but(self, *columns: str) -> list[str]:
        """Return the headings that mean none of some columns."""
        meant = {name for column in columns for name in COLUMNS[column].split()}
        return [heading for heading in self.header if _plain(heading) not in meant]

    def row_of(self, path: Path, below: Path, places: Places) -> dict[str, str] | None:
        """Return the row of a slide, which is known by its path, its name or its stem.

        Of several rows, that counts which states the very name, then that whose path has most
        folders in common with the slide's. The suffix may be that of another format.

        Args:
            path: the slide.
            below: its path below the folder that was searched.
            places: the table's paths, and all slides.

        Raises:
            InputError: rows that fit equally well differ, or the row may be another slide's.
        """
        names, stem = names_of(path), composed(path.stem)
        found: dict[tuple[bool, int], list[dict[str, str]]] = {}
        for _, row in self.rows:
            given = file_of(row)
            exact = bool({composed(given.name), composed(row.get("name", ""))} & names)
            # What follows the point of 12.1 is no suffix.
            if exact or (composed(given.stem) == stem and given.suffix.lower() in SLIDES):
                common = places.in_common(given, path, below)
                if common is not None:
                    found.setdefault((exact, common), []).append(row)
        if not found:
            return None
        first, *others = found[max(found)]
        if len({folded(row.get("patient", "")) for row in (first, *others)}) > 1:
            raise InputError(
                f"{self.path.name} has several rows of {path.name}: give its path there"
            )
        if places.leaves_open(file_of(first), path):
            raise InputError(
                f"{self.path.name} has one row of {path.name}, but several files have that name: "
                "give their paths there"
            )
        return first


def file_of(row: dict[str, str]) -> Path:
    """Return the path or the name that a row states. Raises `InputError` if it states no path."""
    return path_of(row.get("path") or row.get("name", ""))


def names_of(path: Path) -> set[str]:
    """Return the names by which tables may call a slide: with its suffix, or without."""
    return {composed(name) for name in (path.name, path.stem, stem_of(path))}


def stated_files(rows: Rows) -> list[Path]:
    """List the paths and names that rows state; what is no path is left out."""
    files = []
    for _, row in rows:
        with suppress(InputError):
            files.append(file_of(row))
    return files


def _stated(column: str, text: str) -> bool:
    """Say whether a cell holds a value; a slide may be called 'none', but not its patient."""
    return bool(text.strip()) and (
        column in {"path", "name"} or text.strip().lower() not in NO_VALUE
    )


def _headings_below(lines: list[str], first: int) -> str:
    """Point out the line that has the headings, if it is not the first."""
    wanted = set(f"{COLUMNS['path']} {COLUMNS['name']}".split())
    for number, line in enumerate(lines[first + 1 : first + 20], first + 2):
        for sign in SEPARATORS:
            if wanted & {_plain(cell.strip().strip('"')) for cell in line.split(sign)}:
                return f". Row {number} looks like the headings: delete the rows above it"
    return ""


def _plain(heading: str) -> str:
    return "".join(sign for sign in heading.lower() if sign not in " _-.()\n\t\u00a0")


def text_of(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace").removeprefix("\ufeff")
    if b"\0" in data:
        raise InputError(f"{path} is no text: save the table as CSV")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")
