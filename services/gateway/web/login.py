"""Pages to log in with a token, and to log out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from services.gateway.api.access import resources_of
from services.gateway.api.problems import ProblemError
from services.gateway.api.session import COOKIE, from_our_page, home_token, keep_session
from services.gateway.web.pages import PageRoute, render

router = APIRouter(include_in_schema=False, route_class=PageRoute)

Next = Annotated[str, Query(pattern=r"^/([^/\\].*)?$", max_length=512)]


@router.get("/")
def home() -> Response:
    """Redirect to the list of datasets."""
    return RedirectResponse("/datasets", 303)


@router.get("/login")
def login_page(request: Request, next: Next = "/datasets") -> Response:
    """Ask for a token.

    A browser on the machine of an open gateway gets a session without a token.
    """
    token = home_token(request, resources_of(request))
    if token is None:
        return render(request, "login.html", next=next, wrong=False, home=False)
    response: Response = RedirectResponse(next, 303)
    # Browsers would not send the SameSite cookie after a redirect that another site began.
    if request.headers.get("Sec-Fetch-Site") == "cross-site":
        response = render(request, "login.html", next=next, wrong=False, home=True)
    keep_session(response, request, token)
    return response


@router.post("/login")
def log_in(
    request: Request, token: Annotated[str, Form(max_length=128)], next: Next = "/datasets"
) -> Response:
    """Begin a session, if the token is known."""
    if not from_our_page(request):
        raise ProblemError(403, "forbidden", "this form was sent by a page of another site")
    if resources_of(request).tokens.find(token.strip()) is None:
        return render(request, "login.html", next=next, wrong=True, home=False)
    response = RedirectResponse(next, 303)
    keep_session(response, request, token.strip())
    return response


@router.post("/logout")
def log_out() -> Response:
    """End the session."""
    response = RedirectResponse("/login", 303)
    response.delete_cookie(COOKIE)
    return response
