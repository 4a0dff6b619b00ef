"""Tar shards and Parquet tables as bytes: the same content gives the same bytes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from shared.storage.store import DamagedObjectError, Store


def pack_tar(members: Iterable[tuple[str, bytes]]) -> bytes:
    """Pack named bytes as an uncompressed tar (a WebDataset shard); see `write_tar`."""
    body = io.BytesIO()
    write_tar(body, members)
    return body.getvalue()


def write_tar(body: BinaryIO, members: Iterable[tuple[str, bytes]]) -> None:
    """Write named bytes into a file as an uncompressed tar without times or owners.

    Names may have any length: those beyond 100 bytes get an extended (pax) header.
    """
    with tarfile.open(fileobj=body, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mode = 0o644
            tar.addfile(info, io.BytesIO(data))


def unpack_tar(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the name and bytes of every file of a tar."""
    yield from read_tar(io.BytesIO(data))


def read_tar(body: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Yield the name and bytes of every file of a tar that is an open file."""
    with tarfile.open(fileobj=body, mode="r:") as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                yield member.name, file.read()


def read_table(
    store: Store, key: str, columns: list[str] | None = None, *, local: bool = False
) -> pa.Table:
    """Read a Parquet table of the store.

    Args:
        store: holds the table.
        key: where it lies.
        columns: the columns to read; None: all.
        local: read it from a local file, which the cache of a store keeps.

    Raises:
        ObjectNotFoundError: the store holds no such object.
        DamagedObjectError: it is no Parquet table, or lacks a column.
    """
    source = store.local(key) if local else pa.BufferReader(store.get(key))
    with _parsing(store, key):
        return pq.read_table(source, columns=columns, page_checksum_verification=True)


def count_rows(store: Store, key: str) -> int:
    """Return the number of rows of a Parquet table of the store. Raises as `read_table`."""
    path = store.local(key)
    with _parsing(store, key):
        return int(pq.read_metadata(path).num_rows)


@contextmanager
def _parsing(store: Store, key: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # a fault of the disk
            raise
        raise DamagedObjectError(store, key, str(error).partition("\n")[0]) from error


def table_bytes(table: pa.Table, row_group_size: int | None = None) -> bytes:
    """Write a table as Parquet: the same table gives the same bytes.

    Args:
        table: the rows.
        row_group_size: rows per row group, the unit of reading; default: pyarrow's.
    """
    body = io.BytesIO()
    pq.write_table(table, body, row_group_size=row_group_size, write_page_checksum=True)
    return body.getvalue()
