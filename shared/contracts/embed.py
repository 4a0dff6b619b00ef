"""Embed: patches → features.

encoders/embedded-<cohort>/model.safetensors   weights of the cohort's embedded encoder
features/<encoder>/<cohort>/<slide>.h5   `coords` + `features`, as TRIDENT and CLAM write
features/<encoder>/<cohort>/parts/<slide>/<n>.h5   a part of a large slide, until all are there
features/<encoder>/<cohort>/parts/<slide>/<n>.json  Encoded, beside it
features/<encoder>/<cohort>/features.json   FeatureRecord
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from shared.contracts.base import Contract, EncoderName, FileName, Name, Request, Seed
from shared.contracts.ingest import MAX_DAMAGED, CohortRecord, cohort_key
from shared.errors import InputError

SHIPPED_ENCODERS = frozenset(
    {"embedded", "random", "efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"}
)
"""Encoders whose weights are in the store or in a Python package, so that no hub is asked."""


class EmbedRequest(Request):
    """Embed every patch of a cohort."""

    stage: ClassVar[str] = "embed"

    cohort: Name
    encoder: EncoderName = Field(
        "embedded",
        description="'embedded' (trained on the cohort, self-supervised), 'random' (the same "
        "network, untrained), "
        "a registry key, a timm model name, or hf-hub:owner/name",
    )
    weights: FileName | None = Field(
        None, description="key of weights (.safetensors), or absolute path of local ones"
    )
    imported: FileName | None = Field(
        None,
        description="features to import instead: a prefix in the store, or an absolute folder, "
        "with one TRIDENT or CLAM <slide>.h5 per slide",
    )
    imported_sha256: dict[str, str] | None = Field(
        None,
        description="file in `imported` → SHA-256 that it must have; None: any",
    )
    imported_widths: dict[str, int] | None = Field(
        None,
        description="file in `imported` → width of its features; default: read in a folder, not "
        "known of a prefix until the files are imported",
    )
    batch_size: int = Field(64, ge=1, le=4096)
    train_steps: int = Field(400, ge=1, description="training steps of the embedded encoder")
    train_patches: int = Field(4000, ge=64, description="largest number of patches to train it on")
    max_damaged: float = Field(
        MAX_DAMAGED, ge=0, le=1, description="largest share of a slide's patches that may be "
        "unreadable; they are left out",
    )  # fmt: skip
    max_white: float | None = Field(
        None, ge=0, le=1, description="largest share of white pixels (all channels 220 or more) of "
        "a patch; whiter ones are left out and counted. None: all patches are kept",
    )  # fmt: skip
    min_sharpness: float | None = Field(
        None, gt=0, description="smallest variance of the Laplacian of a patch, squared grey "
        "levels; blurred ones are left out and counted. Fitting values depend on scanner and "
        "resolution. None: all patches are kept",
    )  # fmt: skip
    seed: Seed = 0

    @model_validator(mode="after")
    def _filters_own(self) -> EmbedRequest:
        if self.imported is not None and (self.max_white, self.min_sharpness) != (None, None):
            raise ValueError(
                "max_white and min_sharpness filter patches whose pixels are read, not features "
                "that are imported: filter them in the tool that made them"
            )
        return self

    def inputs(self) -> list[str]:
        return [cohort_key(self.cohort)]

    def files(self) -> list[str]:
        unhashed = self.imported if self.imported_sha256 is None else None
        return [name.rstrip("/") for name in (self.weights, unhashed) if name]

    def revises(self, earlier: Request) -> bool:
        """Say whether the request is the same; the content of imported files may change."""
        content = {"imported_sha256": None, "imported_widths": None}
        return isinstance(earlier, EmbedRequest) and (
            self.model_copy(update=content) == earlier.model_copy(update=content)
        )

    def products(self) -> list[str]:
        return [f"features/{encoder_folder(self.encoder)}/{self.cohort}"]


class Encoded(Contract):
    """What became of the patches of a slide, or of a part of it."""

    patches: int = Field(description="number of patches that have features")
    damaged: int = Field(description="number of those that cannot be read")
    white: int = Field(0, description="number of those that are too white")
    blurred: int = Field(0, description="number of others that are too blurred")
    sha256: str = Field(description="SHA-256 of the features")


class FeatureRecord(Contract):
    """Features of a cohort: the record at `features/<encoder>/<cohort>/features.json`."""

    encoder: str
    cohort: Name
    dim: int
    license: str
    slides: dict[str, int] = Field(description="slide → number of patches")
    sha256: dict[str, str] = Field(description="slide → SHA-256 of its features")
    patches: dict[str, str] = Field(
        default_factory=dict, description="slide → `CohortRecord.patches_of` it"
    )
    max_white: float | None = Field(None, description="as in the request")
    min_sharpness: float | None = Field(None, description="as in the request")
    filtered: dict[str, dict[str, int]] = Field(
        default_factory=dict,
        description="slide → number of its patches that were left out as 'white' and as 'blurred', "
        "if there are any",
    )

    def check(self, cohort: CohortRecord, *slides: str) -> None:
        """Check that the features are of the patches that the cohort has now.

        Args:
            cohort: the cohort.
            slides: look at these slides alone; none: at all.

        Raises:
            InputError: slides were replaced since, or have other patches.
        """
        wanted = self.patches.keys() & set(slides) if slides else self.patches.keys()
        known = {name: self.patches[name] for name in wanted if name in cohort.splits}
        other = [name for name, text in known.items() if text != cohort.patches_of(name)]
        if other:
            raise InputError(
                f"features of {self.encoder!r} were made before {len(other)} slides of cohort "
                f"{self.cohort!r} were replaced ({', '.join(other[:5])}): run 'htd embed --cohort "
                f"{self.cohort} --encoder {self.encoder}' again"
            )


def feature_record_key(encoder: str, cohort: str) -> str:
    """Return the key of the record of a cohort's features."""
    return f"features/{encoder_folder(encoder)}/{cohort}/features.json"


def encoder_folder(encoder: str) -> str:
    """Return the folder of an encoder: its name, with - for all but letters, digits and ._-"""
    return "".join(ch if ch.isalnum() or ch in "._-" else "-" for ch in encoder)


def embedded_key(cohort: str) -> str:
    """Return the key of the weights of a cohort's embedded encoder."""
    return f"encoders/embedded-{cohort}/model.safetensors"


def features_key(encoder: str, cohort: str, slide: str) -> str:
    """Return the key of a slide's features."""
    return f"features/{encoder_folder(encoder)}/{cohort}/{slide}.h5"


def part_key(encoder: str, cohort: str, slide: str, part: int, suffix: str = ".h5") -> str:
    """Return the key of the features of a part of a slide, which are joined and then removed."""
    return f"features/{encoder_folder(encoder)}/{cohort}/parts/{slide}/{part:03d}{suffix}"
