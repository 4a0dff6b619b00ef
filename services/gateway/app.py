"""The gateway's application: the API and the pages, with limits and security headers."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.api import problems, routers
from services.gateway.api.body_sizes import MAX_JSON_BYTES
from services.gateway.api.label_tiles import LabelMaps
from services.gateway.api.ops import Counting, Figures
from services.gateway.api.problems import TYPES, ProblemDetails, answer, documented
from services.gateway.api.resources import Resources
from services.gateway.api.watching import Watching
from services.gateway.api.zoom import Zooms
from services.gateway.web import routers as web_routers
from services.gateway.web.pages import FOLDER
from shared.contracts.gateway import ImageBody
from shared.settings import Settings
from shared.tracing import span

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
    """Middleware that adds `HEADERS`, so that browsers do not sniff, frame or leak responses."""

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


class Tracing:
    """Middleware that runs a request as a span, of the trace that its `traceparent` names."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        parent = Headers(scope=scope).get("traceparent", "")
        with span(f"{scope['method']} {scope['path']}", parent):
            await self.app(scope, receive, send)


class LimitProblems:
    """Middleware that answers a too large body with a problem document instead of plain text."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = False

        async def problem_instead(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] == 413:
                refused = True
                await answer(TOO_LARGE)(scope, receive, send)
            elif not refused:
                await send(message)

        await self.app(scope, receive, problem_instead)


class HeadersAlone:
    """Middleware that answers HEAD as GET is answered, without the body.

    Servers tell the application that the client is gone once the answer is whole, so a stream of
    bytes ends after its first part.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self.app(scope, receive, send)
        asked = dict(scope) | {"method": "GET"}
        whole = False

        async def without_body(message: Message) -> None:
            nonlocal whole
            if message["type"] == "http.response.start":
                scope["route"] = asked.get("route")  # by which requests are counted
                await send(message)
            elif message["type"] == "http.response.body" and not whole:
                whole = True
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self.app(asked, receive, without_body)


class Application(FastAPI):
    """A FastAPI whose middleware wraps FastAPI's own limit on bodies and its plain-text error."""

    def build_middleware_stack(self) -> ASGIApp:
        """Wrap FastAPI's own middleware with ours."""
        inner = HeadersAlone(LimitProblems(super().build_middleware_stack()))
        return SecurityHeaders(Tracing(Counting(inner, self.state.figures)))

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI description, with the problems that every operation may answer."""
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
        docs_url=None,  # FastAPI's page loads scripts from another site
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
        max_body_size=MAX_JSON_BYTES,
    )
    app.state.resources = resources
    app.state.watching = Watching()
    app.state.zooms = Zooms()
    app.state.label_maps = LabelMaps()
    app.state.figures = Figures(resources)
    problems.install(app)
    for router in (*routers.ROUTERS, *web_routers.ROUTERS):
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=FOLDER / "static"))
    return app


def _complete(described: dict[str, Any]) -> None:
    """Add to an OpenAPI description what FastAPI cannot infer: problems, and `ImageBody`."""
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
                str(status): response for status, response in documented(*common).items()
            }
