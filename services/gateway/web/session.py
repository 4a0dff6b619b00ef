"""The browser's session: a cookie that holds a token.

Scripts cannot read it, other sites cannot send it, and a request that changes something
must come from a page of ours.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request

COOKIE = "htd_session"
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def session_token(request: Request) -> str | None:
    """Return the token of a request's session; None where another site may have sent it."""
    token = request.cookies.get(COOKIE)
    if token is None or request.method in SAFE:
        return token
    origin = request.headers.get("Origin", "")
    return token if urlsplit(origin).netloc == request.headers.get("Host") else None
