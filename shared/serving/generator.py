"""Opening a generator: a model in this process, or a Triton server where one is configured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from shared.arrays import UInt8
from shared.contracts.deploy import served_model
from shared.contracts.models import ModelRecord
from shared.contracts.sampling import Sampling
from shared.contracts.tenants import LOCAL
from shared.diffusion.crops import Crop
from shared.diffusion.model_store import load_model
from shared.errors import InputError
from shared.serving.priority import Priority
from shared.settings import settings
from shared.storage import Store

if TYPE_CHECKING:
    from shared.serving.client import TritonGenerator

WAIT_SECONDS = 120.0
"""Timeout for a Triton server that is starting."""


class Generator(Protocol):
    """Makes images; see `HeteroTissuePipeline.__call__`."""

    @property
    def device(self) -> str:
        """'cpu' or 'cuda': where the images are made."""

    def generate(
        self,
        labels: UInt8,
        crops: Sequence[Sequence[Crop]],
        seeds: Sequence[int],
        sampling: Sampling,
        *,
        use_map: bool = True,
        use_crops: bool = True,
        callback: Callable[[int], None] | None = None,
    ) -> UInt8:
        """Synthesize images, uint8 RGB (batch, H, W, 3)."""


def open_generator(
    store: Store,
    model: ModelRecord,
    device: str,
    priority: Priority = Priority.BULK,
    *,
    tenant: str = LOCAL,
) -> tuple[Generator, bool]:
    """Open a generator of a model's images: the model itself, or a Triton server.

    A Triton server that is starting delays the call. The server loads the deployment if needed.

    Args:
        store: holds the model.
        model: the model version.
        device: device of a model in this process.
        priority: priority of the requests to a Triton server. Requests above `BULK` share
            batches with others, because they need not be reproducible to the bit.
        tenant: name of the tenant that owns the store.

    Returns:
        The generator, and whether it is a Triton server.

    Raises:
        InputError: a Triton server is configured, but this version is not deployed.
        ServingError: the server does not answer, or cannot load the deployment.
    """
    served = open_server(store, model, priority, tenant=tenant)
    return (load_model(store, model.ref, device), False) if served is None else (served, True)


def open_server(
    store: Store, model: ModelRecord, priority: Priority = Priority.BULK, *, tenant: str = LOCAL
) -> TritonGenerator | None:
    """Open a model on the Triton server; None: no server is configured. See `open_generator`."""
    url = settings().triton_url
    if not url:
        return None
    from shared.serving.client import Server, TritonGenerator
    from shared.serving.deployments import deployments

    numbers = [
        each.number
        for each in deployments(store, model.model)
        if each.version == model.version and each.sha256 == model.sha256
    ]
    if not numbers:
        name = str(model.ref)
        raise InputError(
            f"Triton at {url} does not serve {name}: "
            f"run 'htd deploy --model {name}', or unset HTD_TRITON_URL"
        )
    server = Server(url)
    server.wait(WAIT_SECONDS)
    served = served_model(tenant, model.model)
    if not server.serves(served, numbers[-1]):
        server.load(served, numbers[-1], model.size)
    alone = priority is Priority.BULK
    return TritonGenerator(url, served, numbers[-1], priority=priority, alone=alone)
