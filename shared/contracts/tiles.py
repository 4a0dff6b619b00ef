"""The table of tiles that the command line writes for ingest: a row per tile."""

from __future__ import annotations

import pyarrow as pa

TILE_COLUMNS = pa.schema(
    [
        ("slide", pa.string()),  # all its tiles are in one split
        ("patient", pa.string()),  # all its slides are in one split; null: not known
        ("split", pa.string()),  # null: assigned by the request's `split`
        ("image", pa.string()),  # key in the store, or absolute path
        ("image_sha256", pa.string()),
        ("mask", pa.string()),  # class indices, or `label` wherever not 0
        ("mask_sha256", pa.string()),
        ("label", pa.uint8()),  # null: the mask holds class indices
        ("mpp", pa.float64()),
    ]
)


def tiles_key(cohort: str, digest: str = "") -> str:
    """Return the key of the cohort's table of tiles that has a SHA-256, or the prefix of all."""
    return f"tiles/{cohort}/{digest[:32]}.parquet" if digest else f"tiles/{cohort}/"
