"""ETags: a client that already has the current version of an answer gets 304 instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Header, Response

from services.gateway.api.problems import documented, returning

IfNoneMatch = Annotated[str | None, Header()]

NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "Not modified"}}
"""OpenAPI responses of an operation that uses `not_modified`."""


def etag_headers(version: str, caching: str) -> dict[str, str]:
    """Return the headers ETag and Cache-Control of an answer.

    Args:
        version: text without quotes that changes whenever the answer's content changes.
        caching: value of Cache-Control.
    """
    return {"ETag": f'"{version}"', "Cache-Control": caching}


def not_modified(headers: dict[str, str], if_none_match: str | None) -> Response | None:
    """Return the answer 304 if the client already has the version in `headers`, else None."""
    if if_none_match is not None and headers["ETag"] in if_none_match:
        return Response(status_code=304, headers=headers)
    return None


def drawing(media_type: str) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of an operation that answers with `drawn`."""
    return documented(404) | returning(media_type) | NOT_MODIFIED


def drawn(
    version: str,
    if_none_match: str | None,
    caching: str,
    media_type: str,
    draw: Callable[[], bytes],
) -> Response:
    """Answer with a picture, or with 304 and without drawing it if the client already has it.

    Args:
        version: text without quotes that changes whenever the picture changes.
        if_none_match: ETags of the versions that the client has.
        caching: value of Cache-Control.
        media_type: media type of the picture.
        draw: returns the bytes of the picture.
    """
    headers = etag_headers(version, caching)
    unchanged = not_modified(headers, if_none_match)
    return unchanged or Response(draw(), media_type=media_type, headers=headers)
