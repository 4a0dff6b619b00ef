"""Triton's model repository in the object store: deployments are added and dropped.

triton/<tenant>.<model>-<number>-<part>/config.pbtxt
triton/<tenant>.<model>-<number>-<part>/1/…   weights and model.py, or model.plan
triton/deployments/<model>/<number>.json      its Deployment record

Triton reads the repository directly from the store's bucket or folder, so it lies at the root of
the store for all tenants. The records lie in the tenant's own part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.contracts.deploy import Deployment, deployment_key, served_model, served_prefix
from shared.errors import InputError
from shared.serving.deployments import deployments
from shared.serving.protocol import PARTS, Part, served_name
from shared.storage import Store

DEPLOYMENTS_KEPT = 2
"""Number of deployments: the one in use, and the previous one, which finishes its requests."""


@dataclass(frozen=True)
class Repository:
    """A tenant's part of the model repository.

    Attributes:
        store: the tenant's store, which holds the records.
        root: root of the store, which holds what Triton reads.
        tenant: name of the tenant.
    """

    store: Store
    root: Store
    tenant: str

    def prefix(self, model: str, number: int, part: Part) -> str:
        """Return the prefix of a part of a deployment in the root of the store."""
        return served_prefix(served_name(served_model(self.tenant, model), number, part))


def add_deployment(
    repository: Repository,
    entry: Deployment,
    model: str,
    configs: Mapping[Part, str],
    files: Mapping[Part, Mapping[str, Path]],
) -> None:
    """Add a deployment, and drop the oldest ones beyond `DEPLOYMENTS_KEPT`.

    Files are written first, then the configurations, then the record, so that a record never
    names missing files.

    Args:
        repository: the tenant's part of the repository.
        entry: record of the deployment; its number is new, or that of an interrupted try.
        model: name of the model.
        configs: config.pbtxt of every part.
        files: for every part, name → path of each file in its version folder.

    Raises:
        InputError: another deployment has this number.
    """
    store, root = repository.store, repository.root
    known = {each.number: each for each in deployments(store, model)}
    if known.get(entry.number, entry) != entry:
        raise InputError(
            f"{model} has a deployment {entry.number} already: deploy again, with a new number"
        )
    for part in PARTS:
        prefix = repository.prefix(model, entry.number, part)
        for name, path in files[part].items():
            root.put_file(f"{prefix}1/{name}", path)
        root.put(f"{prefix}config.pbtxt", configs[part].encode())
    store.put_json(deployment_key(model, entry.number), entry)
    for each in deployments(store, model)[:-DEPLOYMENTS_KEPT]:
        drop_deployment(repository, model, each.number)


def drop_deployment(repository: Repository, model: str, number: int) -> None:
    """Delete a deployment: first its record, then its files."""
    repository.store.delete(deployment_key(model, number))
    for part in PARTS:
        repository.root.delete_prefix(repository.prefix(model, number, part))
