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
    """Regions of slides."""

    regions: Name = Field(description="region set")
    splits: tuple[Split, ...] = Field(("test",), min_length=1)

    @property
    def title(self) -> str:
        """How results name the set."""
        return f"{self.regions} ({', '.join(self.splits)})"


class StudyBody(Contract):
    """A reader study to make."""

    study: Name
    real: tuple[RealSet, ...] = Field(min_length=1, max_length=8)
    synthetic: tuple[Name, ...] = Field(min_length=1, max_length=8, description="datasets")
    images: int = Field(
        60, ge=1, le=500, description="of each kind; the sets of a kind give equal shares"
    )
    readers: tuple[ReaderName, ...] = Field(min_length=1, max_length=50)
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**63,
        description="of the choice and the order of images; default: drawn. Who knows it and the "
        "sets knows the truth: keep it from readers",
    )

    @model_validator(mode="after")
    def _all_different(self) -> StudyBody:
        for what, names in (("readers", self.readers), ("synthetic", self.synthetic)):
            if len(set(names)) != len(names):
                raise ValueError(f"{what} are named twice: {list(names)}")
        return self


class ReaderProgress(Contract):
    """How far a reader is."""

    reader: str = Field(description="r1, r2, … in the order of the request")
    name: ReaderName
    answered: int
    submitted: datetime | None


class StudyStatus(Contract):
    """A reader study, for its maker."""

    study: Name
    created: datetime
    real: tuple[RealSet, ...]
    synthetic: tuple[Name, ...]
    images: int = Field(description="of each kind")
    size: int = Field(description="side of every picture, pixels")
    mpp: float
    classes: dict[str, dict[Kind, int]] = Field(
        description="most frequent tissue of an image → number of images"
    )
    readers: tuple[ReaderProgress, ...]


class StudyPage(Contract):
    """Some of the reader studies, by name."""

    items: tuple[StudyStatus, ...]
    next: str | None = Field(description="`cursor` of the next page")


class ReaderLink(Contract):
    """A reader's way in; shown this once."""

    reader: str
    name: ReaderName
    token: str = Field(description="bearer token of /v1/reading: this series and nothing else")
    path: str = Field(description="of the page; what follows # is not sent to any server")


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
        ge=0, le=86400, allow_inf_nan=False, description="measured by the client"
    )


class Answer(AnswerBody):
    """An answer as it is kept; `seconds` is of the first answer, also where it was changed."""

    answered: datetime
    changed: bool = False


class ReadingImage(Contract):
    """One place of a series."""

    image: ImageId = Field(description="random, another one for every reader")
    answer: AnswerBody | None


class Reading(Contract):
    """A reader's series, in its order."""

    study: Name
    reader: ReaderName
    size: int = Field(description="side of every picture, pixels")
    mpp: float
    submitted: bool
    images: tuple[ReadingImage, ...]


class Interval(Contract):
    """An estimate with its 95 % interval; None where nothing can be said."""

    value: float | None
    low: float | None
    high: float | None


class QualityResult(Contract):
    """Quality of one kind of image."""

    answers: int
    mean: float | None
    counts: tuple[int, int, int, int, int] = Field(description="answers of quality 1 to 5")


class ReaderResult(Contract):
    """One reader's answers, or all together."""

    reader: str | None = Field(description="None: pooled")
    name: str | None
    answers: int
    accuracy: Interval
    sensitivity: Interval = Field(description="share of synthetic images called synthetic")
    specificity: Interval = Field(description="share of real images called real")
    d_prime: float | None = Field(description="log-linear correction")
    criterion: float | None = Field(description="above 0: leans to calling images real")
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
    """Whether readers give the same images the same answer, beyond chance."""

    fleiss: float | None = Field(description="of all readers, on images that all have answered")
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
    """Key of one of a reader study's objects."""
    return f"reader_studies/{study}/{name}"
