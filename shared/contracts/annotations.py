"""The formats of annotations that ingest reads, and the names of their files.

A new format is one row here, and its reader in services.ingest.annotations.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal, NamedTuple

LabelFormat = Literal["geojson", "asap", "indexed", "panda-radboud", "panda-karolinska"]


class AnnotationFormat(NamedTuple):
    """One format of annotations.

    Attributes:
        name: of the format.
        suffixes: of its files, by which it is guessed; empty if it must be named.
        doc: its description.
    """

    name: LabelFormat
    suffixes: tuple[str, ...]
    doc: str


FORMATS = (
    AnnotationFormat("geojson", (".geojson", ".json"), "QuPath GeoJSON"),
    AnnotationFormat("asap", (".xml",), "ASAP XML"),
    AnnotationFormat("indexed", (".tif", ".tiff", ".png", ".npy"), "an image of class indices"),
    AnnotationFormat("panda-radboud", (), "a mask of PANDA, Radboud's values"),
    AnnotationFormat("panda-karolinska", (), "a mask of PANDA, Karolinska's values"),
)

ANNOTATION_SUFFIXES = tuple(suffix for kind in FORMATS for suffix in kind.suffixes)
"""Suffixes of all annotations."""

IMAGE_SUFFIXES = frozenset({".tif", ".tiff", ".png"})
"""Suffixes that slides have too: such an annotation is told from a slide by its name."""

OWN_SUFFIXES = tuple(suffix for suffix in ANNOTATION_SUFFIXES if suffix not in IMAGE_SUFFIXES)
"""Suffixes that no slide has."""

ANNOTATION_NAMES = (
    "{}.geojson", "{}.xml", "{}_mask.tiff", "{}_mask.tif", "{}_mask.png", "{}.json",
)  # fmt: skip
"""Names of a slide's annotation, by the slide's stem; the first that exists is taken."""


def guess_format(path: PurePath) -> LabelFormat | None:
    """Guess an annotation's format by its suffix; None if no format has it."""
    suffix = path.suffix.lower()
    return next((kind.name for kind in FORMATS if suffix in kind.suffixes), None)


def known_formats() -> str:
    """List the formats that are known by their suffixes, for a message."""
    return ", ".join(
        f"{kind.doc} ({', '.join(kind.suffixes)})" for kind in FORMATS if kind.suffixes
    )
