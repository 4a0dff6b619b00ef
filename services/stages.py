"""The composition root: the one place that knows every stage, and loads them when asked."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from shared.contracts.base import Request
from shared.contracts.cluster import ClusterRequest
from shared.contracts.embed import EmbedRequest
from shared.contracts.evaluate import EvaluateRequest
from shared.contracts.image import ImageRequest
from shared.contracts.ingest import IngestRequest
from shared.contracts.serving import PublishRequest
from shared.contracts.synthesize import DatasetRequest
from shared.contracts.train import TrainRequest
from shared.errors import InputError, MissingExtraError
from shared.jobs import Stage

REQUESTS: dict[str, type[Request]] = {
    kind.stage: kind
    for kind in (
        IngestRequest,
        EmbedRequest,
        ClusterRequest,
        TrainRequest,
        PublishRequest,
        DatasetRequest,
        ImageRequest,
        EvaluateRequest,
    )
}
"""Stage name → its request, in the order of a whole run."""


def load_stage(name: str) -> Stage[Any]:
    """Import and make a stage.

    Raises:
        InputError: there is no such stage.
        MissingExtraError: its dependencies are not installed.
    """
    if name not in REQUESTS:
        raise InputError(f"{name!r} is no stage: {', '.join(REQUESTS)}")
    try:
        module = import_module(f"services.{name}.stage")
    except ImportError as error:
        raise MissingExtraError(name, error) from error
    stage: Stage[Any] = getattr(module, f"{name.capitalize()}Stage")()
    return stage
