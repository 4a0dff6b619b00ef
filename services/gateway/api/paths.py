"""Check that requests over HTTP name files only by keys in the store of the caller's tenant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from services.gateway.api.problems import ProblemError, pointer
from shared.contracts.base import Contract
from shared.contracts.tenants import is_path, is_reserved


def check_paths(request: Contract) -> None:
    """Refuse a request that names a path on disk, a path with "..", or a reserved folder.

    The command line accepts such paths in the same requests, because its user owns the files.

    Raises:
        ProblemError: a field holds such a path; the problem document names the field (422).
    """
    for place, text in _texts(request.model_dump(mode="json"), ()):
        if is_path(text):
            raise ProblemError(
                422,
                "invalid",
                f"{text!r} is a path; over HTTP, files are named by their keys in the store",
                remedy="upload the file, and give its key",
                pointer=pointer(*place),
            )
        if is_reserved(text):
            raise ProblemError(
                422,
                "invalid",
                f"{text!r} is not a key of your tenant",
                remedy="name one of your tenant's objects, such as 'slides/a/source/a.svs'",
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
