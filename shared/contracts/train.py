"""Train: regions → VAE + dual-conditioned denoiser → published model version.

training/<run>/latents/<shard>.safetensors              latents of views, if the recipe has any
training/<run>/checkpoints/<stage>-<step>.safetensors   everything that a resume needs
training/<run>/checkpoints/paused.safetensors           the same, of a segment that was told to end
training/<run>/slides.json                              SourceSlides
training/<run>/metrics.jsonl, samples/, tensorboard/
models/<name>/<version>/            a diffusers pipeline folder
models/<name>/<version>/model.json  ModelRecord
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from pydantic import Field, field_validator, model_validator

from shared.contracts.base import Name, Request, Seed
from shared.contracts.models import NEWEST, ModelRef
from shared.contracts.recipe import Recipe
from shared.contracts.regions import region_set_key


class Origin(NamedTuple):
    """How a checkpoint was trained: its recipe's name, the side of its images (px), and µm/px."""

    recipe: str
    size: int
    mpp: float


PACKAGED = {
    "starter": Origin("tiny", 128, 1.0),
    "colon": Origin("cpu-small", 128, 0.875),
    "colon-student": Origin("cpu-small", 128, 0.875),
}
"""Checkpoints that come with the package (`services.train.warm_start`)."""


class TrainRequest(Request):
    """Train a model on the train split of a region set, and publish it."""

    stage: ClassVar[str] = "train"
    scratch: ClassVar[tuple[str, ...]] = ("training/",)

    run: Name
    regions: Name = Field(description="name of the region set")
    recipe: Recipe
    model: Name
    version: Name = Field("1", description="number of the version to publish")
    warm_start: str | None = Field(
        None,
        description="model to start from: models/<name>/<version>, or one in the package: "
        "'starter' (trained on phantoms), 'colon' (on colon biopsies) or 'colon-student' (the "
        "few-step student of 'colon')",
    )
    seed: Seed = 0

    @field_validator("version")
    @classmethod
    def _is_one_version(cls, version: str) -> str:
        if version == NEWEST:
            raise ValueError(f"{NEWEST!r} stands for the newest version: give a number")
        return version

    @model_validator(mode="after")
    def _student_has_teacher(self) -> TrainRequest:
        if self.recipe.denoiser.student and (self.warm_start is None or self.recipe.vae.steps):
            raise ValueError(
                "a student needs a teacher and its autoencoder: set warm_start to the teacher's "
                "models/<name>/<version>, and recipe.vae.steps to 0"
            )
        return self

    @model_validator(mode="after")
    def _trains_what_it_publishes(self) -> TrainRequest:
        vae, denoiser = self.recipe.vae, self.recipe.denoiser
        if self.warm_start is None and vae.pretrained is None and not vae.steps:
            raise ValueError(
                "recipe.vae.steps is 0, so the autoencoder would stay untrained: give steps, "
                "recipe.vae.pretrained, or a warm start"
            )
        # A new autoencoder is worth publishing alone: it can be put into the package.
        if self.warm_start is None and not (vae.steps or denoiser.steps):
            raise ValueError(
                "recipe.denoiser.steps is 0, so an untrained denoiser would be published: give "
                "steps, or a warm start"
            )
        return self

    def inputs(self) -> list[str]:
        keys = [region_set_key(self.regions)]
        if self.warm_start and self.warm_start not in PACKAGED:
            keys.append(ModelRef.parse(self.warm_start).key)
        return keys

    def products(self) -> list[str]:
        return [f"models/{self.model_ref}", f"training/{self.run}"]

    def revises(self, earlier: Request) -> bool:
        """Say no: a published version never changes; a new one gets another number."""
        return False

    @property
    def model_ref(self) -> ModelRef:
        """The model version to publish."""
        return ModelRef(self.model, self.version)


def training_key(run: str, name: str) -> str:
    """Return the key of an object of a training run."""
    return f"training/{run}/{name}"
