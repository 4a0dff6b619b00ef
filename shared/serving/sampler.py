"""Where images are made: in this process, or on a Triton server where one is configured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.contracts.models import ModelRecord
from shared.diffusion.crops import Crop
from shared.diffusion.model_store import load_model
from shared.errors import InputError
from shared.settings import settings
from shared.storage import ObjectStore

WAIT_SECONDS = 120.0
"""For a Triton server that is starting."""


class Generator(Protocol):
    """Makes images; see `HeteroTissuePipeline.__call__`."""

    def generate(
        self,
        labels: NDArray[np.uint8],
        crops: Sequence[Sequence[Crop]],
        seeds: Sequence[int],
        **options: Any,
    ) -> NDArray[np.uint8]:
        """Synthesize images, uint8 RGB (batch, H, W, 3)."""


def open_sampler(store: ObjectStore, model: ModelRecord, device: str) -> tuple[Generator, bool]:
    """Open what makes a model's images, and say whether it is a Triton server.

    A Triton server that has started anew is waited for, and told to load the version.

    Raises:
        InputError: a Triton server is configured, and this version is not deployed.
        ServingError: the server does not answer, or cannot load the version.
    """
    url = settings().triton_url
    if not url:
        return load_model(store, model.ref, device), False
    from shared.serving.client import Server, TritonSampler
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
    if not server.serves(model.model, numbers[-1]):
        server.load(model.model, numbers[-1], model.size)
    return TritonSampler(url, model.model, numbers[-1]), True
