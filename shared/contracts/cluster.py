"""Cluster: features → tissue types → pseudo label maps and regions.

clusters/<run>/run.json             ClusterRecord
clusters/<run>/centroids.npy        float32 (k, d), unit length
clusters/<run>/types.yaml           names and merges; a person may edit it
clusters/<run>/assignments/<slide>.parquet   x, y, cluster, distance
clusters/<run>/labels/<slide>.tif   label map, one pixel per patch stride
clusters/<run>/gallery.png          example patches of every type
clusters/<run>/examples/<type>.png  example patches of one type
clusters/<run>/classifier.safetensors   the light classifier, if requested
regions/<run>/…                     region set from the pseudo label maps
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from shared.contracts.base import Contract, Name, Request
from shared.contracts.embed import feature_record_key
from shared.contracts.ingest import cohort_key
from shared.contracts.regions import RegionRule


class ClusterRequest(Request):
    """Find tissue types in a cohort's features and map them onto its slides."""

    stage: ClassVar[str] = "cluster"

    run: Name
    cohort: Name
    encoder: str = "embedded"
    k: int = Field(100, ge=2, le=255, description="number of tissue types")
    first_k: int | None = Field(
        None, ge=2, description="types before the most varied ones are split; default k // 2"
    )
    sample_per_slide: int = Field(1000, ge=2, description="diverse patches taken of each slide")
    iterations: int = Field(25, ge=1)
    smoothing: int = Field(1, ge=0, description="radius of a majority vote in patches; 0: none")
    classifier_steps: int = Field(0, ge=0, description="steps of the light classifier; 0: none")
    regions: RegionRule = RegionRule()
    seed: int = 0

    def inputs(self) -> list[str]:
        return [cohort_key(self.cohort), feature_record_key(self.encoder, self.cohort)]


class ClusterRecord(Contract):
    """The record at `clusters/<run>/run.json`."""

    run: Name
    cohort: Name
    encoder: str
    k: int
    counts: tuple[int, ...] = Field(description="patches of each cluster")
    mean_distance: tuple[float, ...] = Field(description="mean cosine distance to the centroid")
    classifier_accuracy: float | None = Field(description="on patches of held-out slides")
    classifier_slides: tuple[str, ...] = ()


class TissueType(Contract):
    """A person's name, colour and merge of one type."""

    name: str = Field(min_length=1, max_length=128)
    color: tuple[int, int, int]
    merge: int | None = None


def cluster_key(run: str, name: str) -> str:
    """Key of one of a clustering's objects."""
    return f"clusters/{run}/{name}"
