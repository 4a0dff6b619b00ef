"""The application: routers, problem documents, limits, headers."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.api import (
    admin,
    clusters,
    cohorts,
    datasets,
    images,
    jobs,
    models,
    ops,
    overlays,
    problems,
    reader_studies,
    reports,
    slides,
    tiles,
    uploads,
)
from services.gateway.api.ops import Counting, Figures
from services.gateway.api.problems import TYPES, ProblemDetails, answer, documented
from services.gateway.api.resources import Resources
from services.gateway.api.tiles import Zooms
from services.gateway.api.watching import Watching
from services.gateway.web import atlas as web_atlas
from services.gateway.web import datasets as web_datasets
from services.gateway.web import login, studio
from services.gateway.web import reader_studies as web_reader_studies
from services.gateway.web import slides as web_slides
from services.gateway.web import training as web_training
from services.gateway.web.pages import FOLDER
from shared.contracts.gateway import ImageBody
from shared.settings import Settings

MOST_JSON = 2 << 20
"""Bytes of a request's body, but for operations that take files."""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


TOO_LARGE = ProblemDetails(
    type=TYPES + "too-large",
    title="Content Too Large",
    status=413,
    detail="the body is larger than this operation takes",
    remedy="send less; slides are uploaded in parts",
)


class SecurityHeaders:
    """Middleware that says what browsers must not do with our answers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, secured)


class LimitProblems:
    """Middleware that answers a body beyond its limit with a problem, and not in plain text."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = False

        async def told(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] == 413:
                refused = True
                await answer(TOO_LARGE)(scope, receive, send)
            elif not refused:
                await send(message)

        await self.app(scope, receive, told)


class Application(FastAPI):
    """FastAPI with our middleware outside of its own limit on bodies."""

    def build_middleware_stack(self) -> ASGIApp:
        """Wrap FastAPI's own stack."""
        inner = LimitProblems(super().build_middleware_stack())
        return SecurityHeaders(Counting(inner, self.state.figures))

    def openapi(self) -> dict[str, Any]:
        """Describe the API, with the problems that any operation may end in."""
        if self.openapi_schema is None:
            _complete(super().openapi())
        return self.openapi_schema or {}


def make_app(config: Settings) -> FastAPI:
    """Make the gateway's application.

    Raises:
        InputError: no broker is configured, or the store's address or keys are wrong.
    """
    resources = Resources(config)
    app = Application(
        title="HeteroTissue",
        summary="Annotated histopathology images on request.",
        version=version("heterotissue"),
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
        max_body_size=MOST_JSON,
    )
    app.state.resources = resources
    app.state.watching = Watching()
    app.state.zooms = Zooms()
    app.state.figures = Figures(resources)
    problems.install(app)
    for module in (
        datasets,
        images,
        slides,
        uploads,
        tiles,
        overlays,
        cohorts,
        clusters,
        models,
        reader_studies,
        reports,
        jobs,
        admin,
        ops,
        login,
        web_datasets,
        web_training,
        studio,
        web_reader_studies,
        web_slides,
        web_atlas,
    ):
        app.include_router(module.router)
    app.mount("/static", StaticFiles(directory=FOLDER / "static"))
    return app


def _complete(described: dict[str, Any]) -> None:
    """Add what FastAPI does not know of: problems, and a body that is read by hand."""
    schemas = described["components"]["schemas"]
    for model in (ProblemDetails, ImageBody):
        own = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= own.pop("$defs") | {model.__name__: own}
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path, operations in described["paths"].items():
        for operation in operations.values():
            common = [422, 503]
            if path.startswith("/v1/"):
                common += [401, 403, 429]
            if "{" in path:
                common += [404]
            if "requestBody" in operation:
                common += [400, 413]
            operation["responses"] |= {
                str(status): each for status, each in documented(*common).items()
            }
