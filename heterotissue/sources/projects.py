"""QuPath projects as tables of slides."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from heterotissue.sources.table_values import is_there, path_of
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
    if isinstance(moved_from, str):
        for row in rows:
            row["path"] = str(_moved_with(path_of(row["path"]), path_of(moved_from), path))
    faults = {
        number: f"shows {path_of(rows[number - 1]['path']).name} otherwise than the file holds it "
        f"({how}), so what is drawn there lies elsewhere on the slide: add the file to the project "
        "as it is, and draw there"
        for number, how in moved.items()
        if how
    }
    return list(enumerate(rows, 1)), faults


def _moved_with(image: Path, before: Path, now: Path) -> Path:
    """Return the path of an image that has moved together with its project, or else its own.

    QuPath writes absolute paths, and where the project was. Images lie in the project's folder,
    or in one beside it; the folder that was moved may have another name now.

    Args:
        image: path that the project states.
        before: path that the project had.
        now: the project.
    """
    if is_there(image):
        return image
    places = zip(before.parents[:2], now.resolve().parents[:2], strict=False)
    moved = [new / image.relative_to(old) for old, new in places if image.is_relative_to(old)]
    return next((path for path in moved if is_there(path)), image)


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
