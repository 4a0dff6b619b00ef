"""Checks that requests over HTTP name files only by their keys in the caller's store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from services.gateway.api.problems import ProblemError, pointer
from shared.contracts.base import Contract

RESERVED_FOLDERS = frozenset({"access", "audit", "tenants"})
"""Folders of the root that the local tenant may not use, although its store is the root."""


def check_paths(request: Contract) -> None:
    """Refuse a request with an absolute path, one that climbs, or one into `RESERVED_FOLDERS`.

    The command line takes the same requests, and may name any file of its user.

    Raises:
        ProblemError: 422, naming the field.
    """
    for place, text in _texts(request.model_dump(mode="json"), ()):
        path = PurePosixPath(text)
        if path.is_absolute() or ".." in path.parts or "\\" in text or text.startswith("~"):
            raise ProblemError(
                422,
                "invalid",
                f"{text!r} is a path; over HTTP, files are named by their keys in the store",
                remedy="upload the file, and give its key",
                pointer=pointer(*place),
            )
        if len(path.parts) > 1 and path.parts[0] in RESERVED_FOLDERS:
            raise ProblemError(
                422,
                "invalid",
                f"{text!r} is none of your tenant's keys",
                remedy="name what your tenant has, such as 'slides/a/source/a.svs'",
                pointer=pointer(*place),
            )


def _texts(value: Any, place: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _texts(part, (*place, name))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _texts(part, (*place, number))
