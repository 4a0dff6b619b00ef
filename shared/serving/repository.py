"""Triton's model repository in the object store: deployments are added and dropped.

triton/<model>-<number>-<part>/config.pbtxt
triton/<model>-<number>-<part>/1/…      weights and model.py, or model.plan
triton/deployments/<model>/<number>.json  its Deployment record

Triton reads these objects directly from the store's bucket or folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from shared.contracts.deploy import Deployment, deployment_key, served_prefix
from shared.errors import InputError
from shared.serving.deployments import deployments
from shared.serving.protocol import PARTS, Part, served_name
from shared.storage import Store

DEPLOYMENTS_KEPT = 2
"""Number of deployments: the one in use, and the previous one, which finishes its requests."""


def add_deployment(
    store: Store,
    entry: Deployment,
    model: str,
    configs: Mapping[Part, str],
    files: Mapping[Part, Mapping[str, Path]],
) -> None:
    """Add a deployment, and drop the oldest ones beyond `DEPLOYMENTS_KEPT`.

    Files are written first, then the configurations, then the record, so that a record never
    names missing files.

    Args:
        store: holds the repository.
        entry: record of the deployment; its number is new, or that of an interrupted try.
        model: name of the model.
        configs: config.pbtxt of every part.
        files: for every part, name → path of each file in its version folder.

    Raises:
        InputError: another deployment has this number.
    """
    known = {each.number: each for each in deployments(store, model)}
    if known.get(entry.number, entry) != entry:
        raise InputError(
            f"{model} has a deployment {entry.number} already: deploy again, with a new number"
        )
    for part in PARTS:
        prefix = served_prefix(served_name(model, entry.number, part))
        for name, path in files[part].items():
            store.put_file(f"{prefix}1/{name}", path)
        store.put(f"{prefix}config.pbtxt", configs[part].encode())
    store.put_json(deployment_key(model, entry.number), entry)
    for each in deployments(store, model)[:-DEPLOYMENTS_KEPT]:
        drop_deployment(store, model, each.number)


def drop_deployment(store: Store, model: str, number: int) -> None:
    """Delete a deployment: first its record, then its files."""
    store.delete(deployment_key(model, number))
    for part in PARTS:
        store.delete_prefix(served_prefix(served_name(model, number, part)))
