"""QuPath projects as tables of slides."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from heterotissue.sources.table_values import is_file, path_of
from heterotissue.sources.tables import text_of
from shared.errors import InputError

PROJECT = ".qpproj"

SAME_PLACES = {"color", "color_deconvolved", "normalized", "pyramidize", "swapRedBlue"}
"""What QuPath makes of an image (`builderType`) without moving its pixels."""


def read_project(path: Path) -> tuple[list[tuple[int, dict[str, str]]], dict[int, str]]:
    """List the images of a QuPath project as rows, and say which cannot be taken, and why.

    Raises:
        InputError: the file is no project.
    """
    try:
        project = json.loads(text_of(path))
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
