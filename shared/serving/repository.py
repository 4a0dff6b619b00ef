"""Triton's model repository in the object store: versions are added, loaded and rolled back.

triton/<model>-<number>-<part>/config.pbtxt
triton/<model>-<number>-<part>/1/…      weights and model.py, or model.plan
triton/<model>.json                     ServedModel: which number is which version

Keys are the same in a bucket and in a folder, and Triton reads both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from shared.contracts.serving import ServedModel, ServedVersion, served_key, served_prefix
from shared.errors import InputError
from shared.serving.contract import PARTS, Part, served_name
from shared.serving.record import served
from shared.storage import ObjectStore

KEPT = 2
"""Publishings that stay: the one in use, and the one before, which ends what it has begun."""


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

    Raises:
        InputError: another version has the number.
    """
    known = {each.number: each for each in served(store, model).versions}
    if known.get(entry.number, entry) != entry:
        raise InputError(f"{model} has a publishing {entry.number} already: publish it again")
    for part in PARTS:
        prefix = served_prefix(served_name(model, entry.number, part))
        for name, path in files[part].items():
            store.put_file(f"{prefix}1/{name}", path)
        store.put(f"{prefix}config.pbtxt", configs[part].encode())
    known = {each.number: each for each in served(store, model).versions} | {entry.number: entry}
    return _write(store, model, [known[number] for number in sorted(known)])


def drop_version(store: ObjectStore, model: str, number: int) -> ServedModel:
    """Take back a publishing that the server cannot load; the one before is in use again."""
    kept = [each for each in served(store, model).versions if each.number != number]
    _delete(store, model, number)
    return _write(store, model, kept)


def _write(store: ObjectStore, model: str, versions: list[ServedVersion]) -> ServedModel:
    record = ServedModel(model=model, versions=tuple(versions[-KEPT:]))
    store.put_json(served_key(model), record)
    for each in versions[:-KEPT]:
        _delete(store, model, each.number)
    return record


def _delete(store: ObjectStore, model: str, number: int) -> None:
    for part in PARTS:
        store.delete_prefix(served_prefix(served_name(model, number, part)))
