"""The requests of all stages."""

from __future__ import annotations

from shared.contracts.base import Request
from shared.contracts.cluster import ClusterRequest
from shared.contracts.deploy import DeployRequest
from shared.contracts.embed import EmbedRequest
from shared.contracts.evaluate import EvaluateRequest
from shared.contracts.field import FieldRequest
from shared.contracts.image import ImageRequest
from shared.contracts.ingest import IngestRequest
from shared.contracts.synthesize import DatasetRequest
from shared.contracts.train import TrainRequest

REQUESTS: dict[str, type[Request]] = {
    kind.stage: kind
    for kind in (
        IngestRequest,
        EmbedRequest,
        ClusterRequest,
        TrainRequest,
        DeployRequest,
        DatasetRequest,
        ImageRequest,
        FieldRequest,
        EvaluateRequest,
    )
}
"""Stage name → class of its request, in the order of a whole run."""
