"""Cluster: features → tissue types → pseudo label maps and regions.

clusters/<run>/run.json             ClusterRecord
clusters/<run>/centroids.npy        float32 (k, d), unit length
clusters/<run>/types.yaml           names and merges; a person may edit it
clusters/<run>/assignments/<slide>.parquet   x, y, cluster, distance
clusters/<run>/labels/<slide>.tif   label map, one pixel per patch stride
clusters/<run>/gallery.png          example patches of every type
clusters/<run>/examples/<type>.png  example patches of one type
clusters/<run>/classifier.safetensors   classifier from patch images to types, if requested
regions/<run>/…                     region set from the pseudo label maps
"""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import yaml
from pydantic import Field, model_validator

from shared.contracts.base import ClassName, Color, Contract, Name, Request, Seed, class_color
from shared.contracts.embed import feature_record_key
from shared.contracts.ingest import CohortRecord, cohort_key
from shared.contracts.regions import RegionRule

HEADER = """\
# Tissue types of this clustering: label (cluster + 1) -> name, colour, merge.
# Rename as you like. Types of the same name are one class; `merge: N` merges a
# type into type N. Then run htd cluster again, which keeps this file.
"""


class ClusterRequest(Request):
    """Find tissue types in a cohort's features and map them onto its slides."""

    stage: ClassVar[str] = "cluster"

    run: Name
    cohort: Name
    encoder: str = "embedded"
    k: int = Field(100, ge=2, le=255, description="number of tissue types")
    first_k: int | None = Field(
        None, ge=2, description="clusters before the most varied are split, up to k; default k // 2"
    )
    sample_per_slide: int = Field(1000, ge=2, description="diverse patches that each slide gives")
    max_samples: int = Field(
        2_000_000,
        ge=2,
        description="largest number of sampled patches; slides share it evenly. Two million of "
        "1,536 numbers take 6 GB of disk and at most as much memory",
    )
    iterations: int = Field(25, ge=1)
    smoothing: int = Field(
        1, ge=0, description="radius of the label map's majority vote, patches; 0: none"
    )
    classifier_steps: int = Field(
        0,
        ge=0,
        description="training steps of the classifier from patch images to types; 0: no classifier",
    )
    regions: RegionRule | None = Field(
        None, description="default: regions of the size and resolution of the cohort's"
    )
    seed: Seed = 0

    @model_validator(mode="after")
    def _splits_clusters(self) -> ClusterRequest:
        if self.first_k is not None and self.first_k > self.k:
            raise ValueError(f"first_k ({self.first_k}) is above k ({self.k})")
        return self

    def rule(self, cohort: CohortRecord) -> RegionRule:
        """Return the rule of the regions."""
        return self.regions or RegionRule(size=cohort.scale[0], mpp=cohort.scale[1])

    def inputs(self) -> list[str]:
        return [cohort_key(self.cohort), feature_record_key(self.encoder, self.cohort)]

    def optional_inputs(self) -> dict[str, bytes]:
        return {cluster_key(self.run, "types.yaml"): _default_file(self.k)}

    def products(self) -> list[str]:
        return [f"clusters/{self.run}", f"regions/{self.run}"]


class ClusterRecord(Contract):
    """A finished clustering: the record at `clusters/<run>/run.json`."""

    run: Name
    cohort: Name
    encoder: str
    k: int
    counts: tuple[int, ...] = Field(description="number of patches in each cluster")
    mean_distance: tuple[float, ...] = Field(
        description="mean cosine distance of each cluster's patches to its centroid"
    )
    classifier_accuracy: float | None = Field(
        description="accuracy on patches of held-out slides; None if not measured"
    )
    classifier_slides: tuple[str, ...] = Field((), description="the held-out slides")
    centroids: str = Field("", description="SHA-256 of centroids.npy")


class TissueType(Contract):
    """Name and colour of a tissue type; a person may change them, or merge the type."""

    name: ClassName
    color: Color = Field(description="RGB, 0 to 255")
    merge: int | None = Field(None, description="type that this one is merged into")


def cluster_key(run: str, name: str) -> str:
    """Return the key of an object of a clustering."""
    return f"clusters/{run}/{name}"


def default_types(k: int) -> dict[int, TissueType]:
    """Return types 1 to k with default names and colours."""
    return {
        label: TissueType(name=f"type {label}", color=class_color(label))
        for label in range(1, k + 1)
    }


@cache  # each unit of a job asks for it
def _default_file(k: int) -> bytes:
    return write_types(default_types(k))


def write_types(types: dict[int, TissueType]) -> bytes:
    """Encode types as YAML that a person can edit."""
    plain = {label: kind.model_dump(mode="json") for label, kind in types.items()}
    return (HEADER + yaml.safe_dump(plain, sort_keys=True, default_flow_style=None)).encode()
