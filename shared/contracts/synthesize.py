"""Synthesize: a dataset request → images with their label maps and provenance.

datasets/<id>/choices.parquet       the map chosen for every image; written by the plan
datasets/<id>/pseudonyms.key        key of the names by which the dataset calls its sources
datasets/<id>/slides.json           SourceSlides
datasets/<id>/training.safetensors  features of the training regions, for `min_distance`
datasets/<id>/shards/<n>.tar        WebDataset: <key>.png, <key>.mask.png, <key>.json
datasets/<id>/shards/<n>.parquet    that shard's rows of the manifest
datasets/<id>/manifest.parquet      one row per image
datasets/<id>/preview.png
datasets/<id>/README.md             dataset card
datasets/<id>/croissant.json        dataset card for machines
datasets/<id>/dataset.json          DatasetRecord
datasets/<id>/exports/<format>/…    the requested exports

What `PRIVATE` names stays in the store; the rest may leave it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from shared.contracts.base import Classes, Contract, Name, Request, Seed, Split, spelling
from shared.contracts.explaining import near_names
from shared.contracts.models import ModelChoice, ModelRecord, WeightsOrigin
from shared.contracts.regions import region_set_key
from shared.contracts.sampling import Sampling
from shared.errors import InputError, all_quoted, quoted

Condition = Literal["both", "map", "crops", "none"]
ExportFormat = Literal["folder", "coco", "geojson"]
FolderFormat = Literal["folder", "coco", "geojson", "webdataset", "parquet"]
"""What `htd export` writes; datasets in the store are WebDataset shards already."""

PSEUDONYM_KEY = "pseudonyms.key"
TRAINING_FEATURES = "training.safetensors"
SLIDES = "slides.json"
PRIVATE = ("submission.json", "choices.parquet", PSEUDONYM_KEY, SLIDES, TRAINING_FEATURES)
"""Files of a dataset that no archive and no download contains."""


class MapSource(Contract):
    """The source of label maps: regions of a set, turned and mirrored, or sampled layouts."""

    sampled: bool = Field(
        False,
        description="sample the maps by the model's layout model, which is given only the class "
        "shares of a region",
    )
    regions: Name | None = Field(None, description="region set; default: the model's own")
    splits: tuple[Split, ...] = Field(("train",), min_length=1)
    augment: bool = Field(True, description="turn and mirror the maps at random")


class CropSource(Contract):
    """The source of crops: regions of a set, from the slide of the map or from others."""

    regions: Name | None = Field(None, description="region set; default: the model's own")
    splits: tuple[Split, ...] = Field(("train",), min_length=1)
    slide: Literal["same", "other", "any"] = Field(
        "any", description="whether a crop comes from the slide of the map"
    )


class SamplingChoice(Contract):
    """The settings of sampling that a request may change; None takes the model's."""

    steps: int | None = Field(None, ge=1, le=1000, description="default: the model's")
    guidance_map: float | None = Field(None, ge=0, le=20, description="default: the model's")
    guidance_crops: float | None = Field(None, ge=0, le=20, description="default: the model's")
    guidance_low: float | None = Field(
        None, ge=0, le=1, description="time at which guidance ends; noise is at 1, the image at 0"
    )
    guidance_high: float | None = Field(
        None, ge=0, le=1, description="time at which guidance begins; default: the model's"
    )
    staining: float | None = Field(
        None, ge=0, le=1, description="strength of matching the staining of regions to their crops"
    )

    def sampling(self, model: ModelRecord) -> Sampling:
        """Return the model's settings with the changes of this request.

        Raises:
            InputError: the request changes the steps or the guidance of a few-step student,
                which works only with those of its training.
        """
        own = model.recipe.sampling
        given = self.model_dump(include=set(SamplingChoice.model_fields), exclude_none=True)
        changed = {
            name
            for name, value in given.items()
            if name != "staining" and getattr(own, name) != value
        }
        if own.first_order and changed:
            raise InputError(
                f"{model.ref} is a student that samples in {own.steps} steps "
                f"without guidance: leave out {', '.join(sorted(changed))}, or take its teacher "
                f"{model.warm_start}"
            )
        return own.model_copy(update=given)


class DatasetRequest(ModelChoice, SamplingChoice, Request):
    """Make a dataset of synthetic images with their label maps."""

    stage: ClassVar[str] = "synthesize"

    dataset: Name
    images: int = Field(64, ge=1, le=10_000_000)
    proportions: dict[str, float] = Field(
        default_factory=dict,
        description="class name → requested share of all labelled pixels; empty: as in the maps",
    )
    maps: MapSource = MapSource()
    crops: CropSource = CropSource()
    condition: Condition = Field(
        "both", description="conditions given to the model (for ablations)"
    )
    max_copied: float | None = Field(
        None,
        ge=0,
        le=1,
        description="greatest share of a crop's textured blocks that may reappear in an image; "
        "an image above it is refused: made again from other crops and noise, and left out if "
        "that does not help",
    )
    min_distance: float | None = Field(
        None,
        gt=0,
        description="smallest distance of an image to the regions that the model was trained on; "
        "a nearer one is refused. 1: the median distance of a training region to the nearest one "
        "of another slide",
    )
    seed: Seed = 0
    shard_size: int = Field(
        128,
        ge=1,
        le=10_000,
        description="images per shard; larger shards leave fewer pauses between them",
    )
    batch_size: int | None = Field(
        None, ge=1, le=1024, description="images made at a time; default: 64 on a GPU, else 16"
    )
    exports: tuple[ExportFormat, ...] = ()

    @property
    def use_map(self) -> bool:
        """Whether the model is given the label map."""
        return self.condition in {"both", "map"}

    @property
    def use_crops(self) -> bool:
        """Whether the model is given the crops."""
        return self.condition in {"both", "crops"}

    def inputs(self) -> list[str]:
        named = {self.maps.regions, self.crops.regions} - {None}
        sets = [region_set_key(str(name)) for name in sorted(map(str, named))]
        return [self.model_ref.key, *sets]

    def further_inputs(self, records: Mapping[str, bytes]) -> list[str]:
        if self.maps.regions and self.crops.regions:
            return []
        return own_regions(records[self.model_ref.key])

    def revises(self, earlier: Request) -> bool:
        """Say no: a dataset may be in use, so only `--replace` makes it from other regions."""
        return False

    def products(self) -> list[str]:
        return [f"datasets/{self.dataset}"]


def own_regions(model: bytes) -> list[str]:
    """Return the key of the region set of a model, given its record; none if it is unreadable."""
    try:
        return [region_set_key(ModelRecord.model_validate_json(model).regions)]
    except ValidationError:
        return []  # whoever reads the model explains it


def wanted_shares(proportions: Mapping[str, float], classes: Classes) -> dict[int, float]:
    """Check requested proportions and return label → share of the labelled pixels.

    Names of classes are compared as `spelling` writes them.

    Raises:
        InputError: a class is unknown or named twice, a share is negative, or the shares sum to
            more than 1.
    """
    known = {spelling(item.name): item for item in classes.items[classes.first :]}
    if unknown := [name for name in proportions if spelling(name) not in known]:
        names = [item.name for item in known.values()]
        near = near_names(unknown[0], names, 1)
        hint = f"did you mean {quoted(near[0])}?" if near else f"it knows {all_quoted(names)}"
        raise InputError(
            f"the proportions name {all_quoted(unknown)}, which the model does not know: {hint}"
        )
    shares: dict[int, float] = {}
    for name, share in proportions.items():
        item = known[spelling(name)]
        if item.index in shares:
            raise InputError(
                f"the proportions name {quoted(item.name)} twice, in two spellings: give its share "
                "once"
            )
        shares[item.index] = float(share)
    total = sum(shares.values())
    if not (min(shares.values(), default=0.0) >= 0 and total <= 1 + 1e-6):  # so NaN, too
        raise InputError(
            f"proportions are shares of the labelled pixels: none below 0, at most 1 in sum, "
            f"not {', '.join(f'{share:g}' for share in shares.values())} (sum {total:g})"
        )
    return shares


class DatasetRecord(Contract):
    """A finished dataset: the record at `datasets/<id>/dataset.json`.

    `origin` is the origin of the model's weights, where they come from a checkpoint of the package.
    """

    dataset: Name
    model: str
    images: int
    size: int
    mpp: float
    classes: Classes
    proportions: dict[str, float] = Field(description="class name → share in the dataset")
    shards: tuple[str, ...]
    digests: tuple[str, ...] = Field((), description="SHA-256 of each shard")
    manifest: str = Field("", description="SHA-256 of manifest.parquet")
    slides: str = Field("", description="SHA-256 of slides.json")
    origin: WeightsOrigin | None = None
    request: DatasetRequest
    refused: int = Field(0, description="images that the request's bounds refused")
    missing: int = Field(0, description="images left out, as all that were made were refused")

    @property
    def description(self) -> str:
        """The dataset in a sentence."""
        return (
            f"{self.images} synthetic histopathology images of {self.size} px at {self.mpp:g} "
            f"µm per pixel with their label maps, made by {self.model}."
        )

    @property
    def bounds(self) -> str:
        """The bounds on copies, and what they refused, in a sentence."""
        asked = []
        if self.request.max_copied is not None:
            asked.append(f"repeat more than {self.request.max_copied:.3g} of a crop's blocks")
        if self.request.min_distance is not None:
            asked.append(
                f"are nearer to a training region than {self.request.min_distance:.3g} times what "
                "regions of two slides are to each other"
            )
        if not asked:
            return "No image was refused for being near to real tissue."
        return (
            f"Images that {' or '.join(asked)} were refused: {self.refused} were made again, and "
            f"{self.missing} left out."
        )

    @property
    def terms(self) -> str:
        """What a person must know before sharing the dataset."""
        shared = (
            "The images resemble slides of patients; share them only if you may share those slides."
        )
        return f"{self.origin.sentence} {shared}" if self.origin else shared


class CropOrigin(Contract):
    """The origin of a crop and its place in the image, in pixels at the model's mpp."""

    label: int = Field(ge=0)
    region: str = Field(description="pseudonym of the region that the crop was cut from")
    slide: str = Field(description="pseudonym of its slide")
    x: int = Field(description="left upper corner in that region")
    y: int
    side: int
    placed_x: int = Field(description="left upper corner in the image")
    placed_y: int


class Provenance(Contract):
    """The sources and settings of one image: `<key>.json` in its shard.

    Slides and regions have pseudonyms (`shared.datasets.pseudonyms`); older datasets name them.
    """

    key: Name
    index: int
    dataset: str | None = Field(None, description="name of the dataset; None in older ones")
    model: str = Field(description="<name>/<version>")
    weights: dict[str, str] = Field(description="file → SHA-256 of the model's weights")
    map_regions: str = Field(description="region set of the map")
    sampled_map: bool = Field(
        False, description="the map was sampled: only its class shares are those of the region"
    )
    map_region: str = Field(description="pseudonym of the map's region")
    map_slide: str = Field(description="pseudonym of its slide")
    map_x: int = Field(description="left upper corner of the window in that region")
    map_y: int
    symmetry: int = Field(ge=0, le=7, description="`which` of shared.imaging.augment.symmetry")
    crop_regions: str = Field(description="region set of the crops")
    crops: tuple[CropOrigin, ...]
    seed: int = Field(description="seed of the noise")
    sampling: Sampling
    condition: Condition
    copied: float | None = Field(
        None, description="greatest share of a crop's blocks that reappears; None: not measured"
    )
    distance: float | None = Field(
        None, description="to the nearest training region, as in `min_distance`; None: not measured"
    )
    refused: int = Field(0, description="images that were refused in place of this one")

    @model_validator(mode="before")
    @classmethod
    def _nest_sampling(cls, data: Any) -> Any:
        """Accept older datasets, in which the fields of `sampling` were beside `seed`."""
        if not isinstance(data, dict) or "sampling" in data:
            return data
        flat = {name: data[name] for name in Sampling.model_fields if name in data}
        rest = {name: value for name, value in data.items() if name not in flat}
        return rest | {"sampling": flat}


def dataset_key(dataset: str, name: str) -> str:
    """Return the key of an object of a dataset."""
    return f"datasets/{dataset}/{name}"
