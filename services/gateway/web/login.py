"""Pages to log in with a token, and to log out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from services.gateway.api.access import address_of, resources_of
from services.gateway.api.problems import ProblemError
from services.gateway.api.resources import Resources
from services.gateway.api.session import COOKIE, from_our_page, keep_session
from services.gateway.api.tokens import digest_of
from services.gateway.web.pages import PageRoute, render

router = APIRouter(include_in_schema=False, route_class=PageRoute)

MAX_FORM_BYTES = 4096
"""Size of the form that anyone may send: it is read before anything is known of the sender."""

# No backslash, and no space or control character: browsers read "/\t/host" as "//host".
Next = Annotated[
    str, Query(pattern=r"^/([!-.0-\[\]-~][!-\[\]-~]*)?$", max_length=512, description="a path")
]
Secret = Annotated[str, Query(max_length=128)]


@router.get("/")
def home() -> Response:
    """Redirect to the list of datasets."""
    return RedirectResponse("/datasets", 303)


@router.get("/login")
def login_page(request: Request, next: Next = "/datasets", link: Secret = "") -> Response:
    """Ask for a token, or begin the session of a link that works once."""
    if not link:
        return render(request, "login.html", next=next, wrong="")
    session = _begun(request, link, resources_of(request).sessions.follow_link)
    if session is None:
        return render(request, "login.html", next=next, wrong="This link was used, or is old.")
    # A page, not a redirect: browsers would not send the SameSite cookie after a redirect that
    # another program or site began.
    response = render(request, "login.html", next=next, wrong="", begun=True)
    keep_session(response, request, session)
    return response


@router.post("/login", max_body_size=MAX_FORM_BYTES)
def log_in(
    request: Request, token: Annotated[str, Form(max_length=128)], next: Next = "/datasets"
) -> Response:
    """Begin a session, if the token is known."""
    if not from_our_page(request):
        raise ProblemError(403, "forbidden", "this form was sent by a page of another site")
    session = _begun(request, token.strip(), partial(_begin, resources_of(request)))
    if session is None:
        wrong = "This gateway does not know this token."
        return render(request, "login.html", next=next, wrong=wrong)
    response = RedirectResponse(next, 303)
    keep_session(response, request, session)
    return response


def _begin(resources: Resources, token: str) -> str | None:
    """Begin a session with a token, which counts as a request of it; None if it is wrong."""
    record = resources.tokens.find(token)
    if record is None:
        return None
    resources.limits.count_request(record.id)
    return resources.sessions.begin(token)


def _begun(request: Request, secret: str, begin: Callable[[str], str | None]) -> str | None:
    """Begin a session and write it to the audit log; None if the secret is wrong.

    Of the sessions of a token above `MAX_SESSIONS`, the oldest end.

    Raises:
        ProblemError: this address has sent too many wrong secrets, or the token has made too many
            requests (429).
    """
    resources, address = resources_of(request), address_of(request)
    resources.wrong_log_ins.check(address)
    session = begin(secret)
    caller = resources.sessions.find(session) if session else None
    if session is None or caller is None:
        resources.wrong_log_ins.count(address)
        return None
    for oldest in resources.limits.count_session(caller.id, digest_of(session)):
        resources.sessions.end(oldest)
    resources.audit(caller.tenant, caller.name, "log in", {"address": address})
    return session


@router.post("/logout")
def log_out(request: Request) -> Response:
    """End the session."""
    if not from_our_page(request):
        raise ProblemError(403, "forbidden", "this form was sent by a page of another site")
    resources, session = resources_of(request), request.cookies.get(COOKIE, "")
    if caller := resources.sessions.find(session):
        resources.sessions.end(digest_of(session))
        resources.audit(caller.tenant, caller.name, "log out", {"address": address_of(request)})
    response = RedirectResponse("/login", 303)
    response.delete_cookie(COOKIE)
    return response
