"""Tissue types: a small file in which a person names and merges the clusters of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import ValidationError

from shared.arrays import UInt8
from shared.contracts.base import Classes, LabelClass, class_color
from shared.contracts.cluster import TissueType, cluster_key
from shared.contracts.explaining import explain
from shared.errors import InputError
from shared.storage import Store
from shared.yaml_files import parse_mapping


def read_types(store: Store, run: str, k: int) -> dict[int, TissueType]:
    """Read a run's types file.

    Raises:
        InputError: the file is malformed, lacks a type, or merges one into a missing type.
    """
    key = cluster_key(run, "types.yaml")
    try:
        types = _parse_types(parse_mapping(store.get(key), key), key)
        check_types(types, k, key)
    except InputError as error:
        raise InputError(
            f"{error}. Correct the file, or delete it: 'htd cluster' writes it again"
        ) from error
    return types


def _parse_types(plain: dict[str, Any], key: str) -> dict[int, TissueType]:
    types = {}
    for label, kind in plain.items():
        try:
            types[int(label)] = TissueType.model_validate(kind)
        except ValidationError as error:
            raise InputError(f"{key}: type {label}: {explain(error, TissueType)}") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{key}: types are named by numbers, not {label!r}") from error
    return types


def check_types(types: dict[int, TissueType], k: int, key: str) -> None:
    """Raise `InputError` unless `types` are the types 1 to k, merged only into one another."""
    if set(types) != set(range(1, k + 1)):
        raise InputError(f"{key} must list the types 1 to {k}, each once")
    for label, kind in types.items():
        if kind.merge is not None and kind.merge not in types:
            raise InputError(f"{key}: type {label} is merged into {kind.merge}, which is missing")


def classes_of(types: dict[int, TissueType]) -> tuple[Classes, UInt8]:
    """Turn types, after merging them, into the classes of label maps.

    Returns:
        The classes, background first, and a table uint8 (256,) of the class index by type.

    Raises:
        InputError: types are merged in a circle, or their names are too much alike.
    """
    table = np.zeros(256, np.uint8)
    items = [LabelClass(index=0, name="background", color=class_color(0))]
    index: dict[str, int] = {}
    for label in sorted(types):
        kind = types[_target(types, label)]
        if kind.name not in index:
            index[kind.name] = len(items)
            items.append(LabelClass(index=len(items), name=kind.name, color=kind.color))
        table[label] = index[kind.name]
    try:
        return Classes(items=tuple(items)), table
    except ValidationError as error:
        raise InputError(f"tissue types: {explain(error)}") from error


def _target(types: dict[int, TissueType], label: int) -> int:
    seen = {label}
    while (merged := types[label].merge) is not None:
        if merged in seen:
            raise InputError(f"tissue types {sorted(seen)} are merged in a circle")
        seen.add(label := merged)
    return label
