"""The session of a browser: a cookie that holds a token.

Scripts cannot read the cookie, other sites cannot send it, and it permits changes only to
requests from the gateway's own pages.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request, Response

from services.gateway.api.resources import Resources, is_loopback

COOKIE = "htd_session"
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def session_token(request: Request) -> str | None:
    """Return the token in a request's cookie; None if another site may have sent the request."""
    if request.method in SAFE or from_our_page(request):
        return request.cookies.get(COOKIE)
    return None


def home_token(request: Request, resources: Resources) -> str | None:
    """Return the token of an open gateway if a browser on this machine asks, else None.

    The host name of the request must be a loopback name too. Otherwise another site could have
    its own name resolve to this machine and act through the browser (DNS rebinding).
    """
    client = request.client.host if request.client else ""
    home = is_loopback(client) and is_loopback(request.url.hostname or "")
    return resources.open_session if home else None


def keep_session(response: Response, request: Request, token: str) -> None:
    """Set the session cookie of a browser to `token`."""
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=secure)


def from_our_page(request: Request) -> bool:
    """Say whether a request comes from one of the gateway's own pages."""
    # Browsers send Sec-Fetch-Site over HTTPS, and over plain HTTP to loopback addresses only;
    # without it, Origin decides.
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    return urlsplit(request.headers.get("Origin", "")).netloc == request.headers.get("Host")
