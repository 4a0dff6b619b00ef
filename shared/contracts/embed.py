"""Embed: patches → features.

encoders/<name>/                the embedded encoder of a cohort
features/<encoder>/<cohort>/<slide>.h5   `coords` + `features`, as TRIDENT and CLAM write
features/<encoder>/<cohort>/features.json   FeatureRecord
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from shared.contracts.base import Contract, Name, Request
from shared.contracts.ingest import cohort_key


class EmbedRequest(Request):
    """Embed every patch of a cohort."""

    stage: ClassVar[str] = "embed"

    cohort: Name
    encoder: str = Field(
        "embedded",
        description="'embedded' (trained here, self-supervised), 'random' (the same, untrained), "
        "a registry key, a timm model name, or hf-hub:owner/name",
    )
    weights: str | None = Field(None, description="key or absolute path of local weights")
    imported: str | None = Field(
        None, description="import features instead: prefix of their <slide>.h5, in TRIDENT's layout"
    )
    batch_size: int = Field(64, ge=1, le=4096)
    train_steps: int = Field(400, ge=1, description="steps of the embedded encoder's training")
    train_patches: int = Field(4000, ge=64, description="most patches of that training")
    seed: int = 0

    def inputs(self) -> list[str]:
        return [cohort_key(self.cohort)]


class FeatureRecord(Contract):
    """The record at `features/<encoder>/<cohort>/features.json`."""

    encoder: str
    cohort: Name
    dim: int
    license: str
    slides: dict[str, int] = Field(description="slide → number of patches")
    sha256: dict[str, str] = Field(description="slide → SHA-256 of its features")


def feature_record_key(encoder: str, cohort: str) -> str:
    """Key of the record of a cohort's features."""
    return f"features/{encoder_folder(encoder)}/{cohort}/features.json"


def encoder_folder(encoder: str) -> str:
    """Folder of an encoder: its name with other characters than A-Z, 0-9 and ._- replaced."""
    return "".join(ch if ch.isalnum() or ch in "._-" else "-" for ch in encoder)


def features_key(encoder: str, cohort: str, slide: str) -> str:
    """Key of a slide's features."""
    return f"features/{encoder_folder(encoder)}/{cohort}/{slide}.h5"
