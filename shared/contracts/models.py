"""Published models: the names and records of their versions."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import Field

from shared.contracts.base import Classes, Contract, Name
from shared.contracts.recipe import Recipe

NEWEST = "newest"
"""What stands for the version of a model until its newest one is looked up."""


class ModelRef(NamedTuple):
    """A version of a model, written `<name>/<version>`."""

    name: str
    version: str

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Read `<name>` (its newest), `<name>/<version>`, or `models/<name>/<version>`."""
        name, _, version = text.removeprefix("models/").partition("/")
        return cls(name, version or NEWEST)

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    @property
    def prefix(self) -> str:
        """Prefix of the version's objects in the store, with its trailing slash."""
        return f"models/{self}/"

    @property
    def key(self) -> str:
        """Key of the version's record."""
        return f"{self.prefix}model.json"


class ModelChoice(Contract):
    """The model version that a request is for."""

    model: Name
    version: Name = Field(NEWEST, description="number of the version, or 'newest'")

    @property
    def model_ref(self) -> ModelRef:
        """The requested model version."""
        return ModelRef(self.model, self.version)


class WeightsOrigin(Contract):
    """The data behind weights that come with the package, and its licence."""

    license: str = Field(description="SPDX identifier")
    url: str = Field(description="text of the licence")
    credit: str = Field(description="whom to credit")

    @property
    def sentence(self) -> str:
        """The credit, as a sentence."""
        return (
            f"The model's weights go back to a checkpoint trained on {self.credit}, "
            f"licence {self.license} ({self.url}), which asks for this credit."
        )


EBHI_SEG = WeightsOrigin(
    license="CC-BY-4.0",
    url="https://creativecommons.org/licenses/by/4.0/",
    credit="EBHI-Seg (Shi et al. 2023)",
)
"""Origin of the package's autoencoder, and so of all its checkpoints."""


class ModelRecord(Contract):
    """A published model version: the record at `models/<name>/<version>/model.json`."""

    model: Name
    version: Name
    classes: Classes
    size: int = Field(description="side of the images, pixels")
    mpp: float = Field(description="µm per pixel")
    regions: Name = Field(description="region set that the model was trained on")
    run: Name = Field(description="training run")
    recipe: Recipe
    warm_start: str | None = Field(description="model that the training started from")
    sha256: dict[str, str] = Field(description="file → SHA-256 of the weights")
    configurations: dict[str, str] = Field(
        {}, description="file → SHA-256 of the networks' configurations; older records lack it"
    )
    slides: str = Field(
        "", description="SHA-256 of the list of its run's slides; older records lack it"
    )
    unlearnt: tuple[str, ...] = Field(
        (),
        description="classes that no weights were trained on: they look alike without crops",
    )

    @property
    def ref(self) -> ModelRef:
        """The model version of this record."""
        return ModelRef(self.model, self.version)
