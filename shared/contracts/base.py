"""Basics of all contracts: strictness, names, classes, and the data split."""

from __future__ import annotations

import colorsys
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping
from enum import Enum, auto
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    StringConstraints,
    model_validator,
)
from pydantic_core import CoreSchema

from shared.contracts.numbers import refuse_flags
from shared.errors import quoted

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, min_length=1, max_length=128)]
"""A name that becomes a path segment in the store."""

Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""The seed of random choices."""

Split = Literal["train", "val", "test"]


class Opens(Enum):
    """What a worker opens by a text of a request; over HTTP, a tenant may name only some of it."""

    FILE = auto()
    ENCODER = auto()
    SEGMENTER = auto()
    VAE = auto()


FileName = Annotated[str, Opens.FILE]
"""The key of an object, or the beginning of keys, in the store; on the command line also a path."""

EncoderName = Annotated[str, Opens.ENCODER]
"""The name of an encoder (`shared.encoders`), which may be on a hub."""


class Contract(BaseModel):
    """A strict, immutable record."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler, /
    ) -> CoreSchema:
        schema: CoreSchema = refuse_flags(handler(source))
        return schema


class Request(Contract):
    """The request for one job of a stage."""

    stage: ClassVar[str]
    scratch: ClassVar[tuple[str, ...]] = ()
    """Prefixes of the objects that a finished job no longer needs."""

    def inputs(self) -> list[str]:
        """Return keys of the records that the job reads; their content is part of the job's id."""
        return []

    def further_inputs(self, records: Mapping[str, bytes]) -> list[str]:
        """Return keys of further records, which the records of `inputs` name.

        Args:
            records: key → content, of `inputs`.
        """
        return []

    def optional_inputs(self) -> dict[str, bytes]:
        """Return the keys of records that people may change, with what the job writes there.

        They count as inputs if the store has them, and they have been changed.
        """
        return {}

    def files(self) -> list[str]:
        """Return keys or absolute paths of large files whose content the request does not state.

        A file counts by its content if it is a path, and by its tag if it is in the store.
        """
        return []

    def products(self) -> list[str]:
        """Return the names that the job's result takes in the store, such as 'datasets/<name>'."""
        return []

    def revises(self, earlier: Request) -> bool:
        """Say whether the job may replace the result of an earlier one without being asked to.

        It may if the request is the same, so that only the content of its inputs has changed.
        """
        return self == earlier


def _printable(name: str) -> str:
    if not name.isprintable() or name != name.strip():
        raise ValueError(
            f"{quoted(name)} has characters that cannot be seen, or spaces at its ends"
        )
    return name


def spelling(name: str) -> str:
    """Return a class name as names are compared: in one case and Unicode form (macOS writes
    accents apart), with '-' for '_' and spaces."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    return re.sub(r"[\s_-]", "-", " ".join(folded.split()))


def class_zero(exhaustive: bool) -> str:
    """Return the usual name of class 0; see `Classes.exhaustive`."""
    return "other" if exhaustive else "background"


ClassName = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_printable)]
"""The name of a class, as people write it."""


_Level = Annotated[int, Field(ge=0, le=255)]

Color = tuple[_Level, _Level, _Level]
"""A colour: red, green and blue, 0 to 255."""


class LabelClass(Contract):
    """One class of a label map."""

    index: int = Field(ge=0, le=255)
    name: ClassName
    color: Color


_PALETTE = (
    (255, 255, 255), (238, 155, 176), (155, 34, 98), (58, 80, 178), (190, 110, 220),
    (245, 210, 90), (122, 92, 68), (58, 165, 120), (230, 120, 50), (90, 190, 220),
)  # fmt: skip


def class_color(index: int) -> tuple[int, int, int]:
    """Return the default RGB colour (0-255) of a class: a palette, then golden-angle hues."""
    if index < len(_PALETTE):
        return _PALETTE[index]
    hue = (index * 0.618033988749895) % 1.0
    lightness = (0.45, 0.6, 0.35)[index % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.6)
    return round(red * 255), round(green * 255), round(blue * 255)


class Classes(Contract):
    """The classes of a label map, in the order of their indices; see `exhaustive` for index 0."""

    items: tuple[LabelClass, ...] = Field(min_length=2)
    exhaustive: bool = Field(
        False,
        description="whether all tissue was labelled, so that 0 is a class (other tissue); "
        "False: 0 is glass or unlabelled tissue",
    )

    @model_validator(mode="after")
    def _in_order(self) -> Classes:
        if [item.index for item in self.items] != list(range(len(self.items))):
            raise ValueError("class indices must be 0, 1, 2, … in order, with background at 0")
        known: dict[str, LabelClass] = {}
        for item in self.items:
            other = known.setdefault(spelling(item.name), item)
            if other is not item:
                raise ValueError(
                    "class names must differ in more than case, '-' and '_', unlike "
                    f"{quoted(other.name)} (class {other.index}) and {quoted(item.name)} (class "
                    f"{item.index})"
                )
        return self

    @classmethod
    def of(cls, *names: str, exhaustive: bool = False) -> Classes:
        """Make classes 1, 2, … with the given names and default colours, after class 0."""
        full = (class_zero(exhaustive), *names)
        return cls(
            items=tuple(
                LabelClass(index=i, name=name, color=class_color(i)) for i, name in enumerate(full)
            ),
            exhaustive=exhaustive,
        )

    def __len__(self) -> int:
        return len(self.items)

    @property
    def names(self) -> list[str]:
        """All names, background first."""
        return [item.name for item in self.items]

    @property
    def first(self) -> int:
        """Index of the first class of tissue: 0 where labels are exhaustive, else 1."""
        return 0 if self.exhaustive else 1

    @property
    def colors(self) -> list[tuple[int, int, int]]:
        """All RGB colours (0-255), background first."""
        return [item.color for item in self.items]

    def index(self, name: str) -> int:
        """Return a class's index by its name. Raises KeyError."""
        for item in self.items:
            if item.name == name:
                return item.index
        raise KeyError(name)


class SplitFractions(Contract):
    """Shares of the patients to hold back; they apply to slides whose split is not given."""

    val: float = Field(0.0, ge=0, lt=1)
    test: float = Field(0.25, ge=0, lt=1)
    seed: Seed = 0
    by: Literal["patient", "site"] = Field(
        "patient", description="what is never divided between splits"
    )

    @model_validator(mode="after")
    def _leaves_training(self) -> SplitFractions:
        if self.val + self.test >= 1:
            raise ValueError(
                f"val ({self.val:g}) and test ({self.test:g}) leave nothing for training: together "
                "they must be below 1"
            )
        return self

    def assign(
        self,
        groups: Collection[str],
        classes: Mapping[str, Collection[int]] | None = None,
        kept: Mapping[str, Split] | None = None,
    ) -> dict[str, Split]:
        """Split `groups`: patients, sites, or slides of unknown patients.

        Groups are ranked by a hash of their names. Of these, test and then val take the groups
        that best give them their share of every class, and the first rank where that is equal;
        the rest is train. At least one group stays in train, and with it, if possible, every
        class; as far as that allows, a positive share holds back at least one group.

        Args:
            groups: names of the groups. The same names, classes and seed give the same split.
            classes: classes that each group has; None: not known.
            kept: groups whose split is fixed; they count towards the shares.
        """
        has = {name: set((classes or {}).get(name, ())) for name in groups}
        kept = {name: split for name, split in (kept or {}).items() if name in has}
        ranked = sorted(
            has, key=lambda name: hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        )
        splits: dict[str, Split] = {name: kept.get(name, "train") for name in ranked}
        free = [name for name in ranked if name not in kept]
        room = max(0, len(free) - ("train" not in kept.values()))
        shares: tuple[tuple[Split, float], ...] = (("test", self.test), ("val", self.val))
        for split, share in shares:
            held = list(splits.values()).count(split)
            wanted = max(1, round(share * len(ranked))) - held if share else 0
            for _ in range(min(room, wanted)):
                chosen = _best(free, has, splits, split, share)
                free.remove(chosen)
                splits[chosen] = split
                room -= 1
        return splits


def _best(
    free: list[str],
    has: dict[str, set[int]],
    splits: dict[str, Split],
    split: Split,
    share: float,
) -> str:
    """Choose the group that brings a split nearest to its share of every class.

    Args:
        free: groups to choose from; the first of equals is chosen.
        has: group → its classes.
        splits: group → its split so far.
        split: the split that gets a group.
        share: share of the groups of each class that it is to have.
    """
    count, held, train = (
        Counter(index for name in names for index in has[name])
        for names in (
            has,
            [name for name in has if splits[name] == split],
            [name for name in has if splits[name] == "train"],
        )
    )

    def fault(name: str) -> tuple[int, float]:
        last = sum(train[index] == 1 for index in has[name])  # train would lose the class
        off = sum(
            abs(held[index] + (index in has[name]) - max(1, share * total)) / total
            for index, total in count.items()
        )
        return last, round(off, 9)

    return min(free, key=fault)
