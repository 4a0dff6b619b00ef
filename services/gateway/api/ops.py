"""Health checks and metrics, for operators of the gateway. They need no token."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from redis.exceptions import RedisError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.api.access import resources_of
from services.gateway.api.json_bodies import JsonRoute
from services.gateway.api.problems import documented, returning
from services.gateway.api.resources import Resources
from shared.contracts.requests import REQUESTS
from shared.queue.counts import read_counts, read_images
from shared.queue.redis_state import queue_length

METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
"""The methods that are labels of their own, because clients may invent more without end."""

router = APIRouter(tags=["operation"], route_class=JsonRoute)


class WorkCollector(Collector):
    """Prometheus collector of the workers' counts and the lengths of their queues."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Read the metrics from Redis for a scrape; they are empty if Redis does not answer."""
        units = CounterMetricFamily("htd_units", "Ended units of jobs", labels=["stage", "outcome"])
        seconds = CounterMetricFamily(
            "htd_unit_seconds", "Seconds of ended units", labels=["stage", "outcome"]
        )
        images = CounterMetricFamily("htd_images", "Images made", labels=["stage"])
        waiting = GaugeMetricFamily("htd_queue_length", "Queued units", labels=["stage"])
        with suppress(RedisError):
            for count in read_counts(self.resources.redis):
                units.add_metric([count.stage, count.outcome], count.units)
                seconds.add_metric([count.stage, count.outcome], count.seconds)
            for stage, made in read_images(self.resources.redis).items():
                images.add_metric([stage], made)
            for stage in REQUESTS:
                waiting.add_metric([stage], queue_length(self.resources.redis, stage))
        yield from (units, seconds, images, waiting)


class Figures:
    """The metrics of the gateway: HTTP requests, their seconds, and those of the workers."""

    def __init__(self, resources: Resources) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(WorkCollector(resources))
        self.requests = Counter(
            "htd_http_requests", "Requests answered", ["method", "route", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "htd_http_seconds", "Seconds until a response began", ["route"], registry=self.registry
        )


class Counting:
    """Middleware that counts requests by route, because paths would give unlimited labels."""

    def __init__(self, app: ASGIApp, figures: Figures) -> None:
        self.app, self.figures = app, figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if scope["method"] in METHODS else "other"
                self.figures.requests.labels(method, route, message["status"]).inc()
                self.figures.seconds.labels(route).observe(time.perf_counter() - began)
            await send(message)

        await self.app(scope, receive, counted)


@router.get("/healthz")
async def health() -> dict[str, str]:
    """Say that the process runs; this takes no thread, of which slow requests may leave none."""
    return {"status": "ok"}


@router.get("/readyz", responses=documented(503))
def readiness(resources: Annotated[Resources, Depends(resources_of)]) -> dict[str, str]:
    """Say that the store answers.

    Without Redis the gateway still reads, and records jobs that are queued later.
    """
    resources.root.exists("open-jobs/-")
    return {"status": "ready"}


@router.get(
    "/metrics",
    response_class=Response,
    responses=returning("text/plain"),
)
def metrics(request: Request) -> Response:
    """Return the metrics in the text format of Prometheus."""
    figures: Figures = request.app.state.figures
    return Response(generate_latest(figures.registry), media_type=CONTENT_TYPE_LATEST)
