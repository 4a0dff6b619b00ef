"""Triton's model repository in the object store: versions are added, loaded and rolled back.

triton/<model>-<part>/config.pbtxt
triton/<model>-<part>/<number>/…      weights and model.py, or model.plan
triton/<model>.json                   ServedModel: which number is which version

Keys are the same in a bucket and in a folder, and Triton reads both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from shared.contracts.serving import ServedModel, ServedVersion, served_key, served_prefix
from shared.serving.contract import PARTS, Part, served_name
from shared.storage import ObjectStore

KEPT = 3
"""Versions whose files stay: the present one, and two to go back to."""


def served(store: ObjectStore, model: str) -> ServedModel:
    """What is published of a model; nothing, if it never was."""
    key = served_key(model)
    if not store.exists(key):
        return ServedModel(model=model, versions=())
    return store.get_model(key, ServedModel)


def add_version(
    store: ObjectStore,
    entry: ServedVersion,
    model: str,
    configs: Mapping[Part, str],
    files: Mapping[Part, Mapping[str, Path]],
) -> ServedModel:
    """Write a version's files, then the configurations, then the record.

    Args:
        entry: the version; its number is new, or that of an earlier try.
        configs: config.pbtxt of every part.
        files: name → file of every part's version folder.

    Returns:
        The record, with versions beyond `KEPT` dropped.
    """
    for part in PARTS:
        prefix = served_prefix(served_name(model, part))
        for name, path in files[part].items():
            store.put_file(f"{prefix}{entry.number}/{name}", path)
        store.put(f"{prefix}config.pbtxt", configs[part].encode())
    others = [each for each in served(store, model).versions if each.number != entry.number]
    kept = tuple(sorted([*others, entry], key=lambda each: each.number)[-KEPT:])
    record = ServedModel(model=model, versions=kept)
    store.put_json(served_key(model), record)
    for part in PARTS:
        _prune(store, served_prefix(served_name(model, part)), {each.number for each in kept})
    return record


def _prune(store: ObjectStore, prefix: str, kept: set[int]) -> None:
    for key in list(store.list(prefix)):
        number = key.removeprefix(prefix).split("/")[0]
        if number.isdigit() and int(number) not in kept:
            store.delete(key)
