"""The browser's session: a cookie that holds a token.

Scripts cannot read it, other sites cannot send it, and a request that changes something
must come from a page of ours.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request, Response

from services.gateway.api.resources import Resources, is_loopback

COOKIE = "htd_session"
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def session_token(request: Request) -> str | None:
    """Return the token of a request's session; None where another site may have sent it."""
    if request.method in SAFE or from_our_page(request):
        return request.cookies.get(COOKIE)
    return None


def home_token(request: Request, resources: Resources) -> str | None:
    """Return an open gateway's token for a browser of this machine, else None.

    The host name of the request must be this machine's too, because another site can let its own
    name resolve to this machine and so act in the name of the browser.
    """
    client = request.client.host if request.client else ""
    home = is_loopback(client) and is_loopback(request.url.hostname or "")
    return resources.open_session if home else None


def keep_session(response: Response, request: Request, token: str) -> None:
    """Give a browser the cookie of its session."""
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=secure)


def from_our_page(request: Request) -> bool:
    """Say whether a browser sent a request for a page of ours."""
    # Over plain HTTP, browsers send this header to loopback addresses only.
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    return urlsplit(request.headers.get("Origin", "")).netloc == request.headers.get("Host")
