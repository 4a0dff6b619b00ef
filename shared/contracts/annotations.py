"""The formats of annotations that ingest reads.

A new format needs a row here, and a reader in services.ingest.annotations.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal, NamedTuple

LabelFormat = Literal["geojson", "asap", "indexed", "panda-radboud", "panda-karolinska"]


class AnnotationFormat(NamedTuple):
    """One format of annotations.

    Attributes:
        name: name of the format.
        suffixes: suffixes by which the format is guessed; empty if a request must name it.
        doc: description of the format for people.
    """

    name: LabelFormat
    suffixes: tuple[str, ...]
    doc: str


FORMATS = (
    AnnotationFormat("geojson", (".geojson", ".json"), "QuPath GeoJSON"),
    AnnotationFormat("asap", (".xml",), "ASAP XML"),
    AnnotationFormat("indexed", (".tif", ".tiff", ".png", ".npy"), "an image of class indices"),
    AnnotationFormat("panda-radboud", (), "a PANDA mask with Radboud's values"),
    AnnotationFormat("panda-karolinska", (), "a PANDA mask with Karolinska's values"),
)

ANNOTATION_SUFFIXES = tuple(suffix for kind in FORMATS for suffix in kind.suffixes)
"""Suffixes of all annotation files."""

IMAGE_SUFFIXES = frozenset({".tif", ".tiff", ".png"})
"""Suffixes that slides have too, so that only a file's name marks it as an annotation."""

OWN_SUFFIXES = tuple(suffix for suffix in ANNOTATION_SUFFIXES if suffix not in IMAGE_SUFFIXES)
"""Suffixes that no slide has."""


def guess_format(path: PurePath) -> LabelFormat | None:
    """Return the annotation format that has the suffix of `path`, or None."""
    suffix = path.suffix.lower()
    return next((kind.name for kind in FORMATS if suffix in kind.suffixes), None)


def known_formats() -> str:
    """List the formats that have suffixes, as text for a message."""
    return ", ".join(
        f"{kind.doc} ({', '.join(kind.suffixes)})" for kind in FORMATS if kind.suffixes
    )
