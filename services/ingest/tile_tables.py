"""Tables of tiles: which images and masks a cohort of tiles has."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from shared.contracts.base import NAME_PATTERN, Contract, Split
from shared.contracts.tenants import is_path, is_reserved
from shared.contracts.tiles import TILE_COLUMNS
from shared.errors import InputError, quoted
from shared.imaging.slide import COARSEST, FINEST
from shared.jobs.stage import FINISH, PLAN
from shared.sandbox import Document, read_document
from shared.storage import Store

Row = dict[str, Any]
"""One tile of the table, by the names of `TILE_COLUMNS`."""

TEXTS = [field.name for field in TILE_COLUMNS if pa.types.is_string(field.type)]
MAX_TEXT = 4096
"""Longest text of a table of tiles, bytes."""

MAX_TEXTS = 512 << 20
"""Most bytes of texts in a table, rows with equal ones counted each: all of them are in memory."""

MAX_TILES = 2_000_000
"""Greatest number of tiles in a table, all of which are in memory."""

TABLES = "tiles/"
"""Folder of the tables that the command line writes."""

NAME = re.compile(r"(?!.{129})" + NAME_PATTERN)

READER = "services.ingest.tile_tables:parse"


class _Columns(Contract):
    """The columns of `TILE_COLUMNS`, as the parsing process says them."""

    slide: list[str]
    patient: list[str | None]
    split: list[Split | None]
    image: list[str | None]
    image_sha256: list[str | None]
    mask: list[str | None]
    mask_sha256: list[str | None]
    label: list[int | None]
    mpp: list[Annotated[float, Field(allow_inf_nan=True)] | None]


def read_tiles(store: Store, key: str) -> dict[str, list[Row]]:
    """Read a table of tiles (`TILE_COLUMNS`): slide → its tiles.

    Only the command line writes tables below `tiles/`, which may name its user's files by their
    absolute paths. A table elsewhere was uploaded, and names objects of the store.

    Raises:
        InputError: the object is no such table, has more than `MAX_TILES` rows, names files that
            it may not, or has names of slides that are none.
    """
    path = store.local(key)
    try:
        columns = dict(_Columns.model_validate(read_document(READER, path, key)))
    except ValidationError as error:
        first = error.errors()[0]
        place = ", row ".join(map(str, first["loc"]))
        raise InputError(f"{key} is not a table of tiles: {place}: {first['msg']}") from error
    slides: dict[str, list[Row]] = {}
    for values in zip(*(columns[name] for name in TILE_COLUMNS.names), strict=True):
        row = dict(zip(TILE_COLUMNS.names, values, strict=True))
        for name in (row["image"], row["mask"]):
            _check_place(key, name)
        if not (row["mpp"] and FINEST <= row["mpp"] <= COARSEST):
            raise InputError(f"{key}: {row['image']} has {row['mpp']} µm/px, which no tile has")
        slides.setdefault(row["slide"], []).append(row)
    for slide in slides:
        if not NAME.fullmatch(slide) or slide in {PLAN, FINISH}:
            raise InputError(
                f"{key}: {quoted(slide)} is no name of a slide, which has at most 128 letters, "
                f"digits, '.', '_' and '-', begins with one of the first two, and is not {PLAN!r} "
                f"or {FINISH!r}"
            )
    return slides


def parse(path: Path, key: str) -> Document:
    """Return the columns of a table of tiles; it runs inside the sandbox.

    Raises:
        InputError: the file is no such table, has more than `MAX_TILES` rows, or a long text.
    """
    try:
        file = pq.ParquetFile(path, read_dictionary=TEXTS)
        if file.metadata.num_rows > MAX_TILES:
            raise InputError(f"{key} lists {file.metadata.num_rows:,} tiles, at most {MAX_TILES:,}")
        table = file.read(TILE_COLUMNS.names)
        _check_texts(key, table)  # before each row has its own copy of a text
        return Document(table.cast(TILE_COLUMNS).to_pydict())
    # pyarrow raises errors of many kinds for damaged tables.
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{key} is not a table of tiles: {error}") from error


def _check_texts(key: str, table: pa.Table) -> None:
    """Raise `InputError` if texts of a table are longer than names and paths are, or too many."""
    total = 0
    for name in TEXTS:
        for chunk in table.column(name).chunks:
            if pa.types.is_dictionary(chunk.type):
                lengths = pc.take(pc.binary_length(chunk.dictionary), chunk.indices)
            else:
                lengths = pc.binary_length(chunk)
            longest = pc.max(lengths).as_py() or 0
            if longest > MAX_TEXT:
                raise InputError(
                    f"{key} has a text of {longest:,} bytes in {quoted(name)}: no name is"
                )
            total += pc.sum(lengths.cast(pa.int64())).as_py() or 0
    if total > MAX_TEXTS:
        raise InputError(
            f"{key} holds {total >> 20:,} MiB of names, at most {MAX_TEXTS >> 20} are read at "
            "once: make several cohorts of it"
        )


def _check_place(table: str, name: str | None) -> None:
    """Raise `InputError` if a table names a file that its author may not read."""
    if not name:
        raise InputError(f"{table} has a row without an image or a mask")
    if PurePosixPath(name).is_absolute() and table.startswith(TABLES):
        return
    if is_path(name) or is_reserved(name):
        raise InputError(
            f"{table} names {quoted(name)}, but an uploaded table names objects by their keys: "
            "upload the tiles, and give their keys"
        )
