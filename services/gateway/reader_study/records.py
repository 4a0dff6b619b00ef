"""The stored records of a study, except the answers."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from shared.contracts.base import Contract, Name
from shared.contracts.reader_study import Answer, ImageId, Kind, ReaderName, RealSet


class StudyRecord(Contract):
    """The record at `study.json`, the description of a study; it does not tell a picture's kind."""

    study: Name
    created: datetime
    real: tuple[RealSet, ...]
    synthetic: tuple[Name, ...]
    images: int = Field(description="number of images of each kind")
    size: int = Field(description="side of every picture, pixels")
    mpp: float = Field(description="µm per pixel")
    readers: dict[str, ReaderName] = Field(description="reader (r1, r2, …) → name")


class Truth(Contract):
    """Kind and origin of a picture."""

    picture: ImageId
    kind: Kind
    source: str = Field(description="title of the set that it comes from")
    key: str = Field(description="key of the region or sample in that set")
    tissue: str = Field(description="name of its most frequent class")


class Key(Contract):
    """The record at `key.json`: kind and origin of every picture."""

    seed: int
    pictures: tuple[Truth, ...]


class Place(Contract):
    """One position of a reader's series."""

    image: ImageId = Field(description="name of the picture that this reader sees")
    picture: ImageId


class Series(Contract):
    """The record at `series/<reader>.json`: the pictures in the reader's order."""

    places: tuple[Place, ...]


class Submitted(Contract):
    """The record at `submitted/<reader>.json`: when the reader submitted, and what.

    `answers` is None in records of earlier versions, whose answers are those under `answers/`.
    """

    time: datetime
    answers: dict[ImageId, Answer] | None = None
