"""Tar shards and Parquet tables as bytes: the same content gives the same bytes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq


def pack_tar(members: Iterable[tuple[str, bytes]]) -> bytes:
    """Pack named bytes as an uncompressed tar (a WebDataset shard) without times or owners."""
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mode = 0o644
            tar.addfile(info, io.BytesIO(data))
    return body.getvalue()


def unpack_tar(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the name and bytes of every file of a tar."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                yield member.name, file.read()


def table_bytes(table: pa.Table, row_group_size: int | None = None) -> bytes:
    """Write a table as Parquet: the same table gives the same bytes.

    Args:
        table: the rows.
        row_group_size: rows per row group, the unit of reading; default: pyarrow's.
    """
    body = io.BytesIO()
    pq.write_table(table, body, row_group_size=row_group_size)
    return body.getvalue()
