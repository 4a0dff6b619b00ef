"""Validation errors in plain words: which field is wrong, what it is, and what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from shared.contracts.base import NAME_PATTERN
from shared.errors import quoted

MAX_PLACES = 5
"""Number of fields with the same fault that are named one by one."""

Place = Sequence[str | int]
"""The path of a field: names of fields, keys, and indices of items."""


def dotted(place: Place) -> str:
    """Write the path of a field as `recipe.denoiser.steps`."""
    return ".".join(str(part) for part in place)


def explain(
    error: ValidationError,
    model: type[BaseModel] | None = None,
    name: Callable[[Place], str] = dotted,
) -> str:
    """Return one line that names each invalid field and its fault; equal faults are said once.

    Args:
        error: the error.
        model: the class that was validated; with it, unknown fields get a suggestion.
        name: writes the path of a field.
    """
    faults: dict[str, list[str]] = {}
    for item in error.errors():
        faults.setdefault(describe(item, model), []).append(name(item["loc"]))
    lines = []
    for fault, all_places in faults.items():
        places = [place for place in dict.fromkeys(all_places) if place]
        more = len(places) - MAX_PLACES
        shown = ", ".join(places[:MAX_PLACES]) + (f" and {more} more" if more > 0 else "")
        lines.append(f"{shown}: {fault}" if shown else fault)
    return "; ".join(lines)


def describe(item: Mapping[str, Any], model: type[BaseModel] | None = None) -> str:
    """Say what is wrong with a field.

    Args:
        item: an entry of `ValidationError.errors()`.
        model: see `explain`.
    """
    kind, given, place = item["type"], item.get("input"), item["loc"]
    context: Mapping[str, Any] = item.get("ctx") or {}
    if kind == "value_error":
        return str(context.get("error", item["msg"]))
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return f"there is no such field{did_you_mean(str(place[-1]), fields_at(model, place[:-1]))}"
    if kind == "string_pattern_mismatch" and context.get("pattern") == NAME_PATTERN:
        return (
            "may have letters, digits, '.', '_' and '-', and must begin with a letter or digit; "
            f"{_foreign(str(given))}"
        )
    if kind == "string_too_long":
        return f"must have at most {context['max_length']} characters, not {len(str(given))}"
    if kind in ("model_type", "dict_type"):
        text = "must hold fields, each written as `name: value`"
    else:
        text = str(item["msg"]).replace("Input should", "must").replace("String should", "must")
    shown = isinstance(given, str | int | float) and len(str(given)) <= 60
    return f"{text}, not {quoted(given) if isinstance(given, str) else given}" if shown else text


def _foreign(name: str) -> str:
    """Say which characters of a name are not allowed."""
    foreign = [
        {" ": "a space", "/": "a slash", ",": "a comma"}.get(letter, repr(letter))
        for letter in dict.fromkeys(name)
        if not (letter.isascii() and (letter.isalnum() or letter in "._-"))
    ]
    if foreign:
        return f"{quoted(name)} has {', '.join(foreign[:MAX_PLACES])}"
    return f"{quoted(name)} begins with {quoted(name[0])}" if name else "it is empty"


def fields_at(model: type[BaseModel] | None, place: Place) -> list[str]:
    """Return the names of the fields below a path, and the dotted names of the fields in them."""
    models = [model] if model else []
    for part in place:
        inner = [each.model_fields[str(part)] for each in models if part in each.model_fields]
        if inner:  # else `part` is an index or a key
            models = [kind for field in inner for kind in models_of(field.annotation)]
    own = [name for each in models for name in each.model_fields]
    nested = [
        f"{name}.{inner}"
        for each in models
        for name, field in each.model_fields.items()
        for kind in models_of(field.annotation)
        for inner in kind.model_fields
    ]
    return own + nested


def models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models that a type annotation names, such as `Recipe` in `Recipe | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_of(part)


def near_names(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Return the known names that a name is like: those that differ in case alone, else others.

    Args:
        name: the name that is not known.
        known: the known names.
        most: largest number that is returned.
    """
    folded: dict[str, list[str]] = {}
    for each in known:
        folded.setdefault(each.casefold(), []).append(each)
    if same := folded.get(name.casefold()):
        return same[:most]
    like = difflib.get_close_matches(name.casefold(), folded, n=most, cutoff=0.6)
    return [each for key in like for each in folded[key]][:most]


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return the end of a sentence that suggests known names; empty if there are none.

    Args:
        name: the name that is not known.
        known: the known names; of dotted ones the last part counts.
    """
    last = [each for each in known if each.rpartition(".")[2] == name]
    near = last or near_names(name, known, 1)
    if near:
        return f": did you mean {' or '.join(near[:2])}?"
    own = [each for each in known if "." not in each]
    return f"; there are {', '.join(own)}" if own else ""
