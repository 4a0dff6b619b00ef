"""ETags: a client that has the current version of an answer is not sent it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Header, Response

from services.gateway.api.problems import documented, returning

IfNoneMatch = Annotated[str | None, Header()]

NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "Not modified"}}
"""Documents that an operation may answer by `not_modified`."""


def etag_headers(version: str, caching: str) -> dict[str, str]:
    """Return the headers of a tagged answer.

    Args:
        version: text that differs for every content of the answer, without quotes.
        caching: the Cache-Control header.
    """
    return {"ETag": f'"{version}"', "Cache-Control": caching}


def not_modified(headers: dict[str, str], if_none_match: str | None) -> Response | None:
    """Return the answer 304 if the client has the version of `headers` already, else None."""
    if if_none_match is not None and headers["ETag"] in if_none_match:
        return Response(status_code=304, headers=headers)
    return None


def drawing(media_type: str) -> dict[int | str, dict[str, Any]]:
    """Document that an operation answers by `drawn`."""
    return documented(404) | returning(media_type) | NOT_MODIFIED


def drawn(
    version: str,
    if_none_match: str | None,
    caching: str,
    media_type: str,
    draw: Callable[[], bytes],
) -> Response:
    """Answer with a picture, which is drawn only if the client does not have it.

    Args:
        version: text that differs for every content of the picture, without quotes.
        if_none_match: ETags of the versions that the client has.
        caching: the Cache-Control header.
        media_type: media type of the picture.
        draw: makes the picture.
    """
    headers = etag_headers(version, caching)
    unchanged = not_modified(headers, if_none_match)
    return unchanged or Response(draw(), media_type=media_type, headers=headers)
