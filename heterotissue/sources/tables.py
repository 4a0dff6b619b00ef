"""Tables of slides: CSV files of a lab, TRIDENT's lists, CLAM's tables, QuPath projects."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from heterotissue.sources.annotations import stem_of
from heterotissue.sources.files import SLIDES, Finder, with_facts
from heterotissue.sources.records import Found, SlideEntry, shown, some
from heterotissue.sources.table_values import (
    SPLITS,
    is_file,
    label_formats,
    labels_of,
    meant,
    mpp_of,
    near_files,
    one_of,
    path_of,
    square_mpp,
)
from shared.errors import InputError, quoted
from shared.imaging.zarr_slide import is_zarr
from shared.patients import folded

TABLES = {".csv", ".tsv", ".tab"}
PROJECT = ".qpproj"

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

SAME_PLACES = {"color", "color_deconvolved", "normalized", "pyramidize", "swapRedBlue"}
"""What QuPath makes of an image (`builderType`) without moving its pixels."""

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
    rows: list[tuple[int, dict[str, str]]]
    unknown: list[str]
    faults: dict[int, str]

    @classmethod
    def read(cls, path: Path) -> Table:
        """Read a table with commas, semicolons or tabs, in UTF-8, UTF-16 or Windows' own code.

        Raises:
            InputError: the file cannot be read, is no text, or has no column of slides.
        """
        lines = _text(path).replace("\r\n", "\n").replace("\r", "\n").splitlines(keepends=True)
        first = next((n for n, line in enumerate(lines) if line.strip()), None)
        if first is None:
            raise InputError(f"{path} is empty")
        if lines[first].lower().startswith("sep="):  # Excel's own line
            first += 1
        try:
            widths = {
                sign: len(next(csv.reader(lines[first:], delimiter=sign), ())) for sign in "\t;,"
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
        read = {column: plain.index(heading) for column, heading in places.items()}
        unknown = [item for n, item in enumerate(header) if n not in read.values()]
        if not {"path", "name"} & set(read):
            raise InputError(
                f"{path} has no column of slides: give it a heading 'path' or 'slide' (it has "
                f"{some(header, 12) or 'none'})"
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

    def row_of(self, path: Path) -> dict[str, str] | None:
        """Return the row of a slide, which is known by its path, its name or its stem.

        Of several rows, that counts which states the very name, then that whose path has most
        folders in common with the slide's. The suffix may be that of another format.

        Raises:
            InputError: rows that fit equally well differ.
        """
        names = {path.name, path.stem, stem_of(path)}
        found: dict[tuple[bool, int], list[dict[str, str]]] = {}
        for _, row in self.rows:
            given = path_of(row["path"]) if "path" in row else Path(row.get("name", ""))
            exact = given.name in names or row.get("name") in names
            # What follows the point of 12.1 is no suffix.
            if exact or (given.stem == path.stem and given.suffix.lower() in SLIDES):
                found.setdefault((exact, _common(given, path)), []).append(row)
        if not found:
            return None
        first, *others = found[max(found)]
        if len({folded(row.get("patient", "")) for row in (first, *others)}) > 1:
            raise InputError(
                f"{self.path.name} has several rows of {path.name}: give its path there"
            )
        return first


def _stated(column: str, text: str) -> bool:
    """Say whether a cell holds a value; a slide may be called 'none', but not its patient."""
    return bool(text.strip()) and (
        column in {"path", "name"} or text.strip().lower() not in NO_VALUE
    )


def _common(given: Path, path: Path) -> int:
    """Count the folders that two paths have in common, from the file upwards."""
    pairs = zip(given.parts[-2::-1], path.resolve().parts[-2::-1], strict=False)
    return next((n for n, (one, other) in enumerate(pairs) if one != other), len(given.parts))


def _plain(heading: str) -> str:
    return "".join(sign for sign in heading.lower() if sign not in " _-.()\n\t\u00a0")


def _text(path: Path) -> str:
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


def find_by_table(table: Path, folders: list[Path], leave_out: Path | None) -> Found:
    """Find the slides that a table or a QuPath project lists.

    A path of a row is absolute, or relative to the table or to one of the folders. Where the
    row has no path, or only a file's name, the slide is looked for by its name in the folders.
    Slides of the folders that the table does not list are left out.

    Args:
        table: a CSV file, or a project.qpproj of QuPath.
        folders: folders of slides, or slides; may be empty.
        leave_out: folder that is not searched.

    Raises:
        InputError: the table cannot be read, or lists no slide.
    """
    notes: list[str] = []
    if table.suffix.lower() == PROJECT:
        rows, faults = _project(table)
    else:
        listed = Table.read(table)
        rows, faults = listed.rows, listed.faults
        if listed.unknown:
            notes.append(f"{table.name}: columns not read: {some(listed.unknown, 12)}")
    if not rows:
        raise InputError(f"{table} lists no slide")
    around = Finder(leave_out)
    for folder in folders:
        around.add(folder)
    inside = around.finish()
    by_name: dict[str, list[SlideEntry]] = {}
    for entry in inside.slides:
        for name in {entry.path.name, entry.path.stem, entry.below.as_posix()}:
            by_name.setdefault(name, []).append(entry)
    folded: dict[str, list[str]] = {}
    for name, entries in by_name.items():
        folded.setdefault(name.casefold(), []).extend(shown(entry.below) for entry in entries)
    found = Found(notes=notes)
    seen: dict[Path, dict[str, str]] = {}
    named: dict[str, int] = {}
    for number, row in rows:
        try:
            if number in faults:
                raise InputError(faults[number])
            entry = _entry(row, table.parent, folders, by_name, folded)
            real, facts = entry.path.resolve(), row | {"path": ""}
            if real not in seen:
                made = _with_row(entry, row, table.parent)
                if made.name and named.setdefault(made.name, number) != number:
                    raise InputError(
                        f"gives the name {quoted(made.name)} of row {named[made.name]} again"
                    )
                found.slides.append(made)
            elif seen[real] != facts:
                found.slides = [item for item in found.slides if item.path.resolve() != real]
                raise InputError(
                    f"lists {entry.path.name} again, with other values, so no row of it is taken: "
                    "remove those that are wrong"
                )
            seen.setdefault(real, facts)
        except InputError as error:
            found.refuse(f"{table.name}, row {number}", str(error))
    rest = [shown(item.path.name) for item in inside.slides if item.path.resolve() not in seen]
    if rest:
        found.notes.append(f"{table.name} does not list {len(rest)} slides: left out {some(rest)}")
    return found


def _entry(
    row: dict[str, str],
    place: Path,
    folders: list[Path],
    by_name: dict[str, list[SlideEntry]],
    folded: dict[str, list[str]],
) -> SlideEntry:
    """Find the slide of one row; `folded` has names in small letters. Raises `InputError`."""
    stated = row.get("path") or row.get("name")
    if not stated:
        raise InputError("names no slide: it has neither a path nor a name")
    given = path_of(stated)
    paths = [base / given for base in (place, *folders)] if "path" in row else []
    paths += [place / given.name] if paths else []
    for path in paths:
        if is_file(path) or is_zarr(path):
            return _opened(path)
    found = next(
        (
            by_name[name]
            for name in (given.as_posix(), given.name, row.get("name"))
            if name in by_name
        ),
        [],
    )
    if not found:
        looked = f"in {some(map(str, folders))}" if folders else f"beside {place}"
        near = [name for path in paths for name in near_files(path, SLIDES)]
        for name in (given.name, given.stem):
            near += folded.get(name.casefold(), [])
        raise InputError(
            f"{shown(given)} is not there, and no slide of its name is {looked}{meant(near)}"
        )
    if len(found) > 1:
        where = some(shown(entry.below) for entry in found)
        raise InputError(f"{shown(given)} may be any of {where}: give its path")
    return found[0]


def _opened(path: Path) -> SlideEntry:
    """Return the entry of one file. Raises `InputError` if it cannot be a slide."""
    finder = Finder()
    finder.add(path)
    found = finder.finish()
    if found.slides:
        return found.slides[0]
    reasons = [f"{item.path} {item.reason}" for item in found.refused] or found.notes
    raise InputError(reasons[0] if reasons else f"{shown(path)} is no slide")


def _with_row(entry: SlideEntry, row: dict[str, str], place: Path) -> SlideEntry:
    """Add what a row says of a slide. Raises `InputError` for a value that is not valid."""
    return replace(
        with_facts(
            entry,
            name=row.get("name") if "path" in row else None,
            patient=row.get("patient"),
            site=row.get("site"),
            mpp=square_mpp(mpp_of(row.get("mpp")), mpp_of(row.get("mpp_y"))),
            labels=labels_of(row.get("labels"), place),
            label_format=one_of("label format", row.get("label_format"), label_formats()),
            split=one_of("split", row.get("split"), SPLITS),
        )
    )


def _project(path: Path) -> tuple[list[tuple[int, dict[str, str]]], dict[int, str]]:
    """List the images of a QuPath project as rows, and say which cannot be taken, and why.

    Raises:
        InputError: the file is no project.
    """
    try:
        project = json.loads(_text(path))
        images = project["images"]
        moved_from = project.get("uri")
        rows = [_image(image) for image in images]
        moved = {n: _moved(image["serverBuilder"]) for n, image in enumerate(images, 1)}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is no project of QuPath: it lists no images") from error
    base = path_of(moved_from).parent if isinstance(moved_from, str) else None
    for row in rows:
        image = path_of(row["path"])
        # QuPath writes absolute paths, and where the project was: both may have moved together.
        if base is not None and not is_file(image) and image.is_relative_to(base.parent):
            row["path"] = str(path.parent.resolve().parent / image.relative_to(base.parent))
    faults = {
        number: f"shows {path_of(rows[number - 1]['path']).name} otherwise than the file holds it "
        f"({how}), so what is drawn there lies elsewhere on the slide: add the file to the project "
        "as it is, and draw there"
        for number, how in moved.items()
        if how
    }
    return list(enumerate(rows, 1)), faults


def _image(image: dict[str, Any]) -> dict[str, str]:
    builder = image["serverBuilder"]
    row = {"path": next(_uris(builder), "")}
    if not row["path"]:
        raise KeyError("uri")
    size = (builder.get("metadata") or {}).get("pixelCalibration") or {}
    width, height = (size.get(side) or {} for side in ("pixelWidth", "pixelHeight"))
    if width.get("unit") == "µm" and width.get("value") == height.get("value"):
        row["mpp"] = str(width["value"])
    return row


def _moved(builder: dict[str, Any]) -> str | None:
    """Say how QuPath turns, crops or joins a file into an image; None: its pixels stay in place.

    What is made of the file is described from the outside inwards.
    """
    while (kind := builder["builderType"]) != "uri":
        rotation = builder.get("rotation", "")
        if kind not in SAME_PLACES and (kind, rotation) != ("rotated", "ROTATE_NONE"):
            return f"{kind} {rotation}".strip()[:80]
        builder = builder["builder"]
    options = " ".join(map(str, builder.get("args") or ()))
    # Options of Bio-Formats: it was turned, or is not the first image in the file.
    other = re.search(r"--rotate|--series[ =]0*[1-9]\d*", options)
    return other[0] if other else None


def _uris(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("uri"), str):
            yield part["uri"]
        for value in part.values():
            yield from _uris(value)
    elif isinstance(part, list):
        for value in part:
            yield from _uris(value)
