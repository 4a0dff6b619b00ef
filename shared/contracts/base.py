"""Basics of all contracts: strictness, names, classes, and the data split."""

from __future__ import annotations

import colorsys
import hashlib
from typing import Annotated, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, min_length=1, max_length=128)]
"""A name that becomes a path segment in the store."""

Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""The seed of random choices."""

Split = Literal["train", "val", "test"]


class Contract(BaseModel):
    """A strict, immutable record."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Request(Contract):
    """The request for one job of a stage."""

    stage: ClassVar[str]

    def inputs(self) -> list[str]:
        """Return keys of the records that the job reads; their content is part of the job's id."""
        return []


def _printable(name: str) -> str:
    if not name.isprintable() or name != name.strip():
        raise ValueError(f"{name!r} has characters that cannot be seen, or spaces at its ends")
    return name


def spelling(name: str) -> str:
    """Return a class name as names are compared: in one case, with spaces for '-' and '_'."""
    return name.casefold().replace("-", " ").replace("_", " ")


ClassName = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_printable)]
"""The name of a class, as people write it."""


class LabelClass(Contract):
    """One class of a label map."""

    index: int = Field(ge=0, le=255)
    name: ClassName
    color: tuple[int, int, int]


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
                    f"{other.name!r} (class {other.index}) and {item.name!r} (class {item.index})"
                )
        return self

    @classmethod
    def of(cls, *names: str, exhaustive: bool = False) -> Classes:
        """Make classes 1, 2, … with the given names and default colours, after class 0."""
        full = ("other" if exhaustive else "background", *names)
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
    """Shares of the slides to hold back; they apply to slides whose split is not given."""

    val: float = Field(0.0, ge=0, lt=1)
    test: float = Field(0.25, ge=0, lt=1)
    seed: Seed = 0

    def assign(self, slides: list[str]) -> dict[str, Split]:
        """Split `slides` by name: the same names and seed give the same split.

        Slides are ranked by a hash; the first share is test, the next val, the rest
        train. At least one slide stays in train; as far as that allows, a positive share
        holds back at least one slide.
        """
        ranked = sorted(
            slides, key=lambda name: hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        )
        room = max(0, len(ranked) - 1)
        n_test = min(room, max(1, round(self.test * len(ranked)))) if self.test else 0
        n_val = min(room - n_test, max(1, round(self.val * len(ranked)))) if self.val else 0
        held: dict[str, Split] = dict.fromkeys(ranked[:n_test], "test")
        held |= dict.fromkeys(ranked[n_test : n_test + n_val], "val")
        return {name: held.get(name, "train") for name in ranked}
