"""Whether a picture says that it is synthetic, and whether it is an image of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from shared.datasets.samples import load_dataset, read_manifest
from shared.errors import InputError
from shared.imaging.marks import Mark
from shared.imaging.sandboxed_picture import look_at
from shared.storage import Store


class Verdict(NamedTuple):
    """What a file is.

    Attributes:
        good: whether it says that it is synthetic and, where a dataset is given, is an unchanged
            image or label map of it.
        text: the same in words.
    """

    good: bool
    text: str


class Known:
    """The hashes of a dataset's images and label maps.

    Raises:
        InputError: there is no such dataset, or it was made without hashes.
    """

    def __init__(self, store: Store, dataset: str) -> None:
        record = load_dataset(store, dataset)
        self.name = record.dataset
        table = read_manifest(store, record)
        columns = ["key", "image_sha256", "mask_sha256"]
        if not set(columns) <= set(table.column_names):
            raise InputError(
                f"dataset {dataset!r} was made by an older version, without hashes of its images: "
                "make it again"
            )
        rows = table.select(columns).to_pylist()
        self._found = {row["image_sha256"]: f"image {row['key']}" for row in rows}
        masks: dict[str, list[str]] = {}
        for row in rows:
            masks.setdefault(row["mask_sha256"], []).append(row["key"])
        self._found |= {digest: f"label map {', '.join(keys)}" for digest, keys in masks.items()}

    def find(self, digest: str) -> str | None:
        """Return what has these pixels, such as 'image 00000003', or None."""
        return self._found.get(digest)


def verify(path: Path, known: Known | None = None) -> Verdict:
    """Say whether a picture is marked as synthetic, and whether it is of a dataset.

    Raises:
        InputError: the file is no picture that can be read.
    """
    mark, digest = look_at(path)
    said = _said(mark)
    if known is None:
        return Verdict(mark is not None, said)
    found = known.find(digest)
    if found:
        return Verdict(mark is not None, f"{said}; its pixels are those of {found} of {known.name}")
    claims = mark is not None and mark.dataset == known.name
    state = "was changed after it was made" if claims else "is not of"
    return Verdict(False, f"{said}; {state}" + ("" if claims else f" {known.name}"))


def _said(mark: Mark | None) -> str:
    if mark is None:
        return "does not say that it is synthetic"
    model = mark.model or mark.system
    parts = [f"model {model}"] if model else []
    whole = "dataset" if mark.key else "dataset or field"  # only images of datasets have keys
    parts += [f"{whole} {mark.dataset}"] if mark.dataset else []
    parts += [f"image {mark.key}"] if mark.key else []
    kind = "synthetic" if mark.source == "trainedAlgorithmicMedia" else "partly synthetic"
    return f"says that it is {kind} ({', '.join(parts)})"
