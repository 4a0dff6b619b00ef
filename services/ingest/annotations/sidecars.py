"""Files that have the name of an annotation, but hold none: a scanner's XML, other tools' JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from defusedxml.ElementTree import iterparse
from pydantic import TypeAdapter, ValidationError

from services.ingest.annotations import qupath
from services.ingest.annotations.formats import format_of
from services.ingest.annotations.outlines import ForeignError, xml_faults
from shared.contracts.annotations import LabelFormat, formats_of
from shared.contracts.base import Contract
from shared.errors import InputError
from shared.sandbox import Document, read_document

READER = "services.ingest.annotations.sidecars:examine"

OBJECTS: dict[LabelFormat, str] = {
    "asap": "Annotation", "imagescope": "Region", "halo": "Region", "ndpa": "ndpviewstate",
}  # fmt: skip
"""Formats of XML → the element that each outline has."""


class Content(Contract):
    """What a file with the name of an annotation holds.

    Attributes:
        kind: 'annotation', which also stands for files that are damaged or of which only their
            reader can tell; 'no classes': outlines of which none names a class; 'empty': XML
            without any outline; 'foreign': what is of no format of annotations.
        why: words on it that follow the file's name; empty for annotations.
    """

    kind: Literal["annotation", "no classes", "empty", "foreign"]
    why: str = ""


_CONTENT = TypeAdapter(Content)


def content_of(path: Path) -> Content:
    """Look into a file in the sandbox; masks are not opened."""
    if all(kind.name == "mask" for kind in formats_of(path.name)):
        return Content(kind="annotation")
    try:
        return _CONTENT.validate_python(read_document(READER, path))
    except (InputError, ValidationError):  # ingest says what is wrong with it
        return Content(kind="annotation")


def examine(path: Path) -> Document:
    """Tell what a file holds; it runs inside the sandbox. Raises `InputError` if it is damaged."""
    content = Content(kind="annotation")
    try:
        name = format_of(path)
        if name == "qupath" and not qupath.names_classes(path):
            content = Content(kind="no classes", why="names no class")
        elif name in OBJECTS and not _has(path, OBJECTS[name]):
            content = Content(kind="empty", why="has no outline")
    except ForeignError as error:
        content = Content(kind="foreign", why=error.why)
    return Document(content.model_dump())


def _has(path: Path, tag: str) -> bool:
    with xml_faults(path):
        return any(element.tag == tag for _, element in iterparse(path, events=("start",)))
