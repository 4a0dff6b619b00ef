"""The operations of the gateway, and whether one that a page names is among them."""

from __future__ import annotations

import re
import tempfile
from functools import cache
from pathlib import Path

from starlette.routing import Route

from services.gateway.api import models
from tests.gateway import Gateway

PLACEHOLDER = re.compile(r"\{\w+(?::path)?\}")


@cache
def routes() -> frozenset[tuple[str, str]]:
    """Method and path of every operation; paths have {names}."""
    with tempfile.TemporaryDirectory() as folder:
        described = Gateway(Path(folder)).app.openapi()["paths"]
    found = {(method.upper(), path) for path, each in described.items() for method in each}
    for route in models.router.routes:  # the description leaves out the old name of deploy
        if isinstance(route, Route):
            found |= {(method, route.path) for method in route.methods or ()}
    return frozenset(found)


def find_route(text: str, method: str | None = None) -> bool:
    """Say whether an operation exists.

    Args:
        text: path as pages write it: <name> and {name} stand for any segment, {a,b} for each of
            these, and … for any beginning.
        method: such as GET; None for any.
    """
    choice = re.search(r"\{(\w+(?:,\w+)+)\}", text)
    if choice:
        return all(
            find_route(text.replace(choice[0], each), method) for each in choice[1].split(",")
        )
    wanted = text.partition("?")[0].removeprefix("…").strip("/").split("/")
    for known, path in routes():
        parts = path.strip("/").split("/")
        if text.startswith("…"):
            parts = parts[-len(wanted) :]
        same = method in (None, known) and len(parts) == len(wanted)
        if same and all(map(_fits, wanted, parts)):
            return True
    return False


def _fits(word: str, part: str) -> bool:
    if "<" in word or "{" in word:
        return bool(PLACEHOLDER.search(part))
    literals = [re.escape(literal) for literal in PLACEHOLDER.split(part)]
    return re.fullmatch("[^/]+".join(literals), word) is not None
