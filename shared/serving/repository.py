"""Triton's model repository in the object store: versions are added, loaded and rolled back.

triton/<model>-<number>-<part>/config.pbtxt
triton/<model>-<number>-<part>/1/…      weights and model.py, or model.plan
triton/deployments/<model>/<number>.json  Deployment: which version it is

Keys are the same in a bucket and in a folder, and Triton reads both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from shared.contracts.deploy import Deployment, deployment_key, served_prefix
from shared.errors import InputError
from shared.serving.contract import PARTS, Part, served_name
from shared.serving.deployments import deployments
from shared.storage import ObjectStore

KEPT = 2
"""Deployments that stay: the one in use, and the one before, which ends what it has begun."""


def add_version(
    store: ObjectStore,
    entry: Deployment,
    model: str,
    configs: Mapping[Part, str],
    files: Mapping[Part, Mapping[str, Path]],
) -> None:
    """Write a version's files, then the configurations, then the record; drop those beyond `KEPT`.

    Deployments that end at the same time each write a record of their own.

    Args:
        entry: the version; its number is new, or that of an earlier try.
        configs: config.pbtxt of every part.
        files: name → file of every part's version folder.

    Raises:
        InputError: another version has the number.
    """
    known = {each.number: each for each in deployments(store, model)}
    if known.get(entry.number, entry) != entry:
        raise InputError(f"{model} has a deployment {entry.number} already: deploy it again")
    for part in PARTS:
        prefix = served_prefix(served_name(model, entry.number, part))
        for name, path in files[part].items():
            store.put_file(f"{prefix}1/{name}", path)
        store.put(f"{prefix}config.pbtxt", configs[part].encode())
    store.put_json(deployment_key(model, entry.number), entry)
    for each in deployments(store, model)[:-KEPT]:
        drop_version(store, model, each.number)


def drop_version(store: ObjectStore, model: str, number: int) -> None:
    """Take back a deployment: one that the server cannot load, or one too many."""
    store.delete(deployment_key(model, number))
    for part in PARTS:
        store.delete_prefix(served_prefix(served_name(model, number, part)))
