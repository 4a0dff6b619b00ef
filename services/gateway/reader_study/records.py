"""The records of a study, except the answers."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from shared.contracts.base import Contract, Name
from shared.contracts.reader_study import ImageId, Kind, ReaderName, RealSet


class StudyRecord(Contract):
    """The record at `study.json`: nothing in it tells a picture's kind."""

    study: Name
    created: datetime
    real: tuple[RealSet, ...]
    synthetic: tuple[Name, ...]
    images: int
    size: int
    mpp: float
    readers: dict[str, ReaderName] = Field(description="r1, r2, … → name")


class Truth(Contract):
    """The truth of a picture."""

    picture: ImageId
    kind: Kind
    source: str = Field(description="title of its set")
    key: str = Field(description="of the region or the sample in that set")
    tissue: str = Field(description="its most frequent class")


class Key(Contract):
    """The record at `key.json`: the truth."""

    seed: int
    pictures: tuple[Truth, ...]


class Place(Contract):
    """One place of a series."""

    image: ImageId = Field(description="the name that the reader sees")
    picture: ImageId


class Series(Contract):
    """The record at `series/<reader>.json`."""

    places: tuple[Place, ...]


class Submitted(Contract):
    """The record at `submitted/<reader>.json`."""

    time: datetime
