"""Logging in with a token, and out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from services.gateway.api.access import house_of
from services.gateway.api.problems import ProblemError
from services.gateway.web.pages import PageRoute, render
from services.gateway.web.session import COOKIE, from_our_page

router = APIRouter(include_in_schema=False, route_class=PageRoute)

Next = Annotated[str, Query(pattern=r"^/([^/\\].*)?$", max_length=512)]


@router.get("/")
def home() -> Response:
    """Lead to the first page."""
    return RedirectResponse("/datasets", 303)


@router.get("/login")
def login_page(request: Request, next: Next = "/datasets") -> Response:
    """Ask for a token."""
    return render(request, "login.html", next=next, wrong=False)


@router.post("/login")
def log_in(
    request: Request, token: Annotated[str, Form(max_length=128)], next: Next = "/datasets"
) -> Response:
    """Begin a session."""
    if not from_our_page(request):
        raise ProblemError(403, "forbidden", "this was sent by a page of another site")
    if house_of(request).tokens.find(token.strip()) is None:
        return render(request, "login.html", next=next, wrong=True)
    response = RedirectResponse(next, 303)
    response.set_cookie(
        COOKIE,
        token.strip(),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


@router.post("/logout")
def log_out() -> Response:
    """End the session."""
    response = RedirectResponse("/login", 303)
    response.delete_cookie(COOKIE)
    return response
