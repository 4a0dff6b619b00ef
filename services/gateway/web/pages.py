"""Shared parts of all pages: rendering, headers and permissions."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, Request, Response
from fastapi.security import HTTPAuthorizationCredentials
from fastapi.templating import Jinja2Templates
from starlette.exceptions import HTTPException

from services.gateway.api.access import Caller, allowed, bearer, resources_of
from services.gateway.api.problems import ProblemError
from services.gateway.api.resources import Resources
from services.gateway.api.tokens import Scope
from services.gateway.api.turns import TurnRoute

SHOWN_SAMPLING = {"steps", "guidance_map", "guidance_crops", "staining"}
"""The fields of a model's `Sampling` that forms show."""

FOLDER = Path(__file__).parent
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SCOPES: tuple[Scope, ...] = ("read", "annotate", "generate", "train", "admin")

NAVIGATION = (
    ("/slides", "Slides"),
    ("/atlas", "Atlas"),
    ("/studio", "Studio"),
    ("/fields", "Fields"),
    ("/datasets", "Datasets"),
    ("/training", "Training"),
    ("/reader-studies", "Reader studies"),
)
"""Path and title of the pages that every page links to."""

_templates = Jinja2Templates(FOLDER / "templates")
_templates.env.trim_blocks = _templates.env.lstrip_blocks = True
_templates.env.globals["navigation"] = NAVIGATION


def render(
    request: Request, template: str, caller: Caller | None = None, **context: Any
) -> Response:
    """Render a template as the response to a request.

    Args:
        request: the request.
        template: name of a file in `templates`.
        caller: the visitor, whose permissions the template reads from `may`; None: no permission.
        context: further variables of the template.
    """
    held = set(caller.token.scopes) if caller else set()
    may = {scope: bool({scope, "admin"} & held) for scope in SCOPES}
    headers = {
        "Content-Security-Policy": POLICY,
        "Cache-Control": "no-store",
        # With "no-referrer", browsers would send "Origin: null" with forms.
        "Referrer-Policy": "same-origin",
    }
    return _templates.TemplateResponse(
        request, template, {"may": may, "here": request.url.path} | context, headers=headers
    )


class PageRoute(TurnRoute):
    """A route that returns a page, also when a `ProblemError` is raised."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, with every `ProblemError` rendered as a page."""
        handle = super().get_route_handler()

        async def shown(request: Request) -> Response:
            try:
                return await handle(request)
            except ProblemError as error:
                page = render(request, "problem.html", problem=error.details)
                page.status_code = error.details.status
                return page

        return shown


def visiting(scope: Scope) -> Any:
    """Make a dependency like `allowed`, which redirects visitors without a session to /login."""
    check = allowed(scope)

    def visit(
        request: Request,
        resources: Annotated[Resources, Depends(resources_of)],
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    ) -> Caller:
        try:
            return check(request, resources, credentials)
        except ProblemError as error:
            if error.details.status != 401:
                raise
        url = request.url
        place = quote(f"{url.path}?{url.query}" if url.query else url.path)
        raise HTTPException(303, headers={"Location": f"/login?next={place}"})

    return visit


Visitor = Annotated[Caller, Depends(visiting("read"))]
Maker = Annotated[Caller, Depends(visiting("generate"))]
