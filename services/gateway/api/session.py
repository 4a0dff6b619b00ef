"""The sessions of browsers: a cookie holds the id of a session, which ends at log-out.

Scripts cannot read the cookie, other sites cannot send it, and it permits changes only to
requests from the gateway's own pages. A session begins with a token, or with a link that works
once, and ends with its token or after `SESSION_HOURS`.
"""

from __future__ import annotations

import re
import secrets
import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from urllib.parse import urlsplit

from fastapi import Request, Response

from services.gateway.api.tokens import KNOWN_SECONDS, Scope, TokenRecord, Tokens, digest_of
from services.gateway.signing import SignedRecords
from shared.contracts.base import Contract
from shared.contracts.tenants import LINKS, LOCAL, SESSIONS
from shared.storage import ObjectNotFoundError

COOKIE = "htd_session"
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
SESSION_HOURS = 12
LINK_HOURS = 1

MAX_KNOWN = 4096
"""Number of sessions whose records stay in memory."""

_ID = re.compile(r"hts_[A-Za-z0-9_-]{43}")
_LINK = re.compile(r"htl_[A-Za-z0-9_-]{43}")


class SessionRecord(Contract):
    """The stored record of a session, or of a link that begins one.

    Attributes:
        caller: what the session may do.
        token: SHA-256 of the token that it began with; None: it began with a link.
        ends: its last moment.
    """

    caller: TokenRecord
    token: str | None
    ends: datetime


class Sessions:
    """The sessions of a store's gateways.

    Args:
        records: the store's signed records.
        tokens: the store's tokens.
    """

    def __init__(self, records: SignedRecords, tokens: Tokens) -> None:
        self.records, self.tokens = records, tokens
        self._known = lru_cache(maxsize=MAX_KNOWN)(self._read)

    def begin(self, token: str) -> str | None:
        """Begin a session with a token and return its id; None if the token is not valid."""
        record = self.tokens.find(token)
        return self._begin(record, digest_of(token)) if record is not None else None

    def _begin(self, caller: TokenRecord, token: str | None) -> str:
        session = f"hts_{secrets.token_urlsafe(32)}"
        ends = datetime.now(UTC) + timedelta(hours=SESSION_HOURS)
        record = SessionRecord(caller=caller, token=token, ends=ends)
        self.records.put(f"{SESSIONS}{digest_of(session)}.json", record)
        return session

    def make_link(self, name: str, scopes: tuple[Scope, ...]) -> str:
        """Return the secret of a link that begins one session of the local tenant."""
        link, now = f"htl_{secrets.token_urlsafe(32)}", datetime.now(UTC)
        caller = TokenRecord(
            id=digest_of(link)[:16], name=name, tenant=LOCAL, scopes=scopes, created=now
        )
        record = SessionRecord(caller=caller, token=None, ends=now + timedelta(hours=LINK_HOURS))
        self.records.put(f"{LINKS}{digest_of(link)}.json", record)
        return link

    def follow_link(self, link: str) -> str | None:
        """Begin the session of a link and return its id; None if the link was used or is old."""
        if not _LINK.fullmatch(link):
            return None
        name = f"{LINKS}{digest_of(link)}.json"
        try:
            record = self.records.get(name, SessionRecord)
        except ObjectNotFoundError:
            return None
        if not self.records.revoke(name) or record.ends < datetime.now(UTC):
            return None
        return self._begin(record.caller, None)

    def find(self, session: str) -> TokenRecord | None:
        """Return what a session may do, or None if it has ended."""
        if not _ID.fullmatch(session):
            return None
        try:
            record = self._known(digest_of(session), int(time.monotonic() / KNOWN_SECONDS))
        except ObjectNotFoundError:
            return None
        if record.ends < datetime.now(UTC):
            return None
        return record.caller if record.token is None else self.tokens.find_digest(record.token)

    def _read(self, digest: str, _: int) -> SessionRecord:
        """Read a record, which stays in memory until the number of the time, `_`, is another."""
        return self.records.get(f"{SESSIONS}{digest}.json", SessionRecord)

    def end(self, digest: str) -> None:
        """End a session; other gateways of this store may accept it for some seconds more.

        Args:
            digest: SHA-256 of its id.
        """
        self.records.revoke(f"{SESSIONS}{digest}.json")
        self._known.cache_clear()


def session_id(request: Request) -> str | None:
    """Return the id in a request's cookie; None if another site may have sent the request."""
    if request.method in SAFE or from_our_page(request):
        return request.cookies.get(COOKIE)
    return None


def keep_session(response: Response, request: Request, session: str) -> None:
    """Set the session cookie of a browser to the id of a session."""
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, session, httponly=True, samesite="strict", secure=secure)


def from_our_page(request: Request) -> bool:
    """Say whether a request comes from one of the gateway's own pages."""
    # Browsers send Sec-Fetch-Site over HTTPS, and over plain HTTP to loopback addresses only;
    # without it, Origin decides.
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    try:
        origin = urlsplit(request.headers.get("Origin", "")).netloc
    except ValueError:  # it is no address, so it is none of ours
        return False
    return origin == request.headers.get("Host")
