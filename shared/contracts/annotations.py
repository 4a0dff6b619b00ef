"""The formats of annotations: their names, suffixes, and what is written.

A new format needs a row here, and a reader in services.ingest.annotations.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

LabelFormat = Literal[
    "qupath", "asap", "imagescope", "halo", "ndpa", "mask", "panda-radboud", "panda-karolinska"
]


class AnnotationFormat(NamedTuple):
    """One format of annotations.

    Attributes:
        name: name of the format.
        suffixes: suffixes of its files, in lower case; empty if a request must name the format.
        doc: description of the format for people.
        root: root element, which tells formats apart that share .xml; None if not XML.
        written: whether `htd labels` writes the format.
    """

    name: LabelFormat
    suffixes: tuple[str, ...]
    doc: str
    root: str | None = None
    written: bool = True


FORMATS = (
    AnnotationFormat("qupath", (".geojson", ".geojson.gz", ".json", ".json.gz"), "QuPath GeoJSON"),
    AnnotationFormat("asap", (".xml",), "ASAP XML", "ASAP_Annotations"),
    AnnotationFormat("imagescope", (".xml",), "Aperio ImageScope XML", "Annotations"),
    AnnotationFormat("halo", (".annotations",), "HALO annotations", "Annotations"),
    AnnotationFormat("ndpa", (".ndpa",), "Hamamatsu NDP.view annotations", "annotations"),
    AnnotationFormat(
        "mask", (".tif", ".tiff", ".png", ".npy", ".bmp", ".webp", ".gif"),
        "a mask, whose pixels are class indices"
    ),
    AnnotationFormat(
        "panda-radboud", (), "a PANDA mask with Radboud's values", written=False
    ),
    AnnotationFormat(
        "panda-karolinska", (), "a PANDA mask with Karolinska's values", written=False
    ),
)  # fmt: skip

ANNOTATION_SUFFIXES = tuple(dict.fromkeys(suffix for kind in FORMATS for suffix in kind.suffixes))
"""Suffixes of all annotation files."""

IMAGE_SUFFIXES = frozenset({".tif", ".tiff", ".png"})
"""Suffixes that slides have too, so that only a file's name marks it as an annotation."""

OWN_SUFFIXES = tuple(suffix for suffix in ANNOTATION_SUFFIXES if suffix not in IMAGE_SUFFIXES)
"""Suffixes that no slide has."""


def has_annotation_suffix(name: str) -> bool:
    """Return whether a file has the suffix of an annotation."""
    return name.lower().endswith(ANNOTATION_SUFFIXES)


def formats_of(name: str) -> list[AnnotationFormat]:
    """List the formats whose files have the suffix of `name`; XML is told apart by its root."""
    return [kind for kind in FORMATS if kind.suffixes and name.lower().endswith(kind.suffixes)]


def known_formats() -> str:
    """List the formats that have suffixes, as text for a message."""
    return ", ".join(
        f"{kind.doc} ({', '.join(kind.suffixes)})" for kind in FORMATS if kind.suffixes
    )
