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
    if request.method in SAFE or from_our_page(request):
        return request.cookies.get(COOKIE)
    return None


def from_our_page(request: Request) -> bool:
    """Say whether a browser sent a request for a page of ours."""
    site = request.headers.get("Sec-Fetch-Site")  # not sent over plain HTTP, but to loopback
    if site is not None:
        return site == "same-origin"
    return urlsplit(request.headers.get("Origin", "")).netloc == request.headers.get("Host")
