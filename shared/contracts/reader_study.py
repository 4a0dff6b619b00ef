"""Reader study: blinded people judge which images are real, and how good they are."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, model_validator

from shared.contracts.base import Contract, Name, Split

Kind = Literal["real", "synthetic"]
Quality = Annotated[int, Field(ge=1, le=5)]
ReaderName = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[^\x00-\x1f\x7f]+$")]
ImageId = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]

KINDS: tuple[Kind, Kind] = ("real", "synthetic")


class RealSet(Contract):
    """Real images of a study: regions of a region set."""

    regions: Name = Field(description="region set")
    splits: tuple[Split, ...] = Field(("test",), min_length=1)

    @property
    def title(self) -> str:
        """Name of the set in the results."""
        return f"{self.regions} ({', '.join(self.splits)})"


class StudyBody(Contract):
    """A request for a reader study."""

    study: Name
    real: tuple[RealSet, ...] = Field(min_length=1, max_length=8)
    synthetic: tuple[Name, ...] = Field(min_length=1, max_length=8, description="datasets")
    images: int = Field(
        60, ge=1, le=500, description="images of each kind; the sets of a kind give equal shares"
    )
    readers: tuple[ReaderName, ...] = Field(min_length=1, max_length=50)
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**63,
        description="seed of the choice and the order of images; default: drawn. Keep it from "
        "readers, because the seed and the sets together tell which images are real",
    )

    @model_validator(mode="after")
    def _all_different(self) -> StudyBody:
        for what, names in (("readers", self.readers), ("synthetic", self.synthetic)):
            if len(set(names)) != len(names):
                raise ValueError(f"{what} are named twice: {list(names)}")
        return self


class ReaderProgress(Contract):
    """The progress of a reader."""

    reader: str = Field(description="r1, r2, … in the order of the request")
    name: ReaderName
    answered: int = Field(description="number of answers")
    submitted: datetime | None


class StudyStatus(Contract):
    """A reader study as its maker sees it."""

    study: Name
    created: datetime
    real: tuple[RealSet, ...]
    synthetic: tuple[Name, ...]
    images: int = Field(description="number of images of each kind")
    size: int = Field(description="side of every picture, pixels")
    mpp: float
    classes: dict[str, dict[Kind, int]] = Field(
        description="most frequent tissue of an image → kind → number of images"
    )
    readers: tuple[ReaderProgress, ...]


class StudyPage(Contract):
    """A page of reader studies, sorted by name."""

    items: tuple[StudyStatus, ...]
    next: str | None = Field(description="`cursor` of the next page; None on the last")


class ReaderLink(Contract):
    """A reader's link to the study, which is shown only once."""

    reader: str
    name: ReaderName
    token: str = Field(description="bearer token of /v1/reading; opens this series only")
    path: str = Field(description="path of the page; browsers keep the part after # to themselves")


class NewStudy(Contract):
    """A reader study that was made, and the links for its readers."""

    status: StudyStatus
    links: tuple[ReaderLink, ...]


class AnswerBody(Contract):
    """A reader's answer to an image."""

    answer: Kind
    quality: Quality = Field(description="1 poor … 5 excellent")
    note: str = Field("", max_length=1000)
    seconds: float = Field(
        ge=0, le=86400, allow_inf_nan=False, description="time to answer, measured by the client"
    )


class Answer(AnswerBody):
    """A stored answer; if it was changed, `seconds` is still the time of the first answer."""

    answered: datetime
    changed: bool = False


class ReadingImage(Contract):
    """One image of a reader's series."""

    image: ImageId = Field(description="random id, different for every reader")
    answer: AnswerBody | None


class Reading(Contract):
    """A reader's series of images, in the order in which they are shown."""

    study: Name
    reader: ReaderName
    size: int = Field(description="side of every picture, pixels")
    mpp: float
    submitted: bool
    images: tuple[ReadingImage, ...]


class Interval(Contract):
    """An estimate with its 95 % interval; None if it cannot be estimated."""

    value: float | None
    low: float | None
    high: float | None


class QualityResult(Contract):
    """Readers' ratings of the quality of one kind of image, from 1 (poor) to 5 (excellent)."""

    answers: int
    mean: float | None
    counts: tuple[int, int, int, int, int] = Field(
        description="number of answers of each quality, 1 to 5"
    )


class ReaderResult(Contract):
    """The results of one reader, or of all readers together."""

    reader: str | None = Field(description="r1, r2, …; None: all readers")
    name: str | None
    answers: int
    accuracy: Interval
    sensitivity: Interval = Field(description="share of synthetic images called synthetic")
    specificity: Interval = Field(description="share of real images called real")
    d_prime: float | None = Field(description="d′ with the log-linear correction")
    criterion: float | None = Field(description="bias; above 0 towards calling images real")
    quality: dict[Kind, QualityResult]
    quality_difference: Interval = Field(description="mean of synthetic minus mean of real")
    median_seconds: float | None = Field(description="per image, measured by the client")


class GroupResult(Contract):
    """All readers' answers to the images of one tissue class, or of one set."""

    group: str
    kind: Kind
    images: int
    answers: int
    called_synthetic: Interval
    mean_quality: float | None


class PairAgreement(Contract):
    """Cohen's kappa of two readers, on images that both have answered."""

    readers: tuple[str, str]
    images: int
    cohen: float | None


class Agreement(Contract):
    """How far readers agree on the same images, beyond chance."""

    fleiss: float | None = Field(description="Fleiss' kappa on images that all have answered")
    images: int
    pairs: tuple[PairAgreement, ...]


class StudyResults(Contract):
    """The results of a study so far."""

    study: Name
    complete: bool = Field(description="whether every reader has submitted")
    pooled: ReaderResult
    readers: tuple[ReaderResult, ...]
    classes: tuple[GroupResult, ...]
    sets: tuple[GroupResult, ...]
    agreement: Agreement


def study_key(study: str, name: str) -> str:
    """Return the key of an object of a reader study."""
    return f"reader_studies/{study}/{name}"
