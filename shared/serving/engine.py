"""The networks as a Triton Python backend runs them: PyTorch, on a CPU or a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack


def version_folder(arguments: dict[str, str]) -> Path:
    """Folder of the version that is being loaded, of the arguments of `initialize`."""
    return Path(arguments["model_repository"]) / arguments["model_version"]


def parameters(arguments: dict[str, str]) -> dict[str, str]:
    """Parameters of the model's configuration."""
    found = json.loads(arguments["model_config"])["parameters"]
    return {name: str(value["string_value"]) for name, value in found.items()}


def device_of(arguments: dict[str, str]) -> str:
    """The device that the server gave to this instance."""
    if arguments["model_instance_kind"] == "GPU":
        return f"cuda:{arguments['model_instance_device_id']}"
    return "cpu"


@contextmanager
def computing(device: str, precision: str) -> Iterator[None]:
    """Inference in a precision, 'fp32' or 'bf16'."""
    kind = device.partition(":")[0]
    with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16"):
        yield


class Batched:
    """Answers many requests by one call of a network.

    Args:
        utilities: Triton's `triton_python_backend_utils`.
        inputs: names of the network's inputs.
        output: name of its output.
        network: from the inputs' tensors, rows first, to the output's.
        device: where it runs.
    """

    def __init__(
        self,
        utilities: Any,
        inputs: Sequence[str],
        output: str,
        network: Callable[..., Tensor],
        device: str,
    ) -> None:
        self.utilities = utilities
        self.inputs = inputs
        self.output = output
        self.network = network
        self.device = device

    def __call__(self, requests: Sequence[Any]) -> list[Any]:
        """Answer Triton's requests, each with its rows of the network's output."""
        given = [[self._read(request, name) for name in self.inputs] for request in requests]
        joined = [
            torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*given, strict=True)
        ]
        rows = self.network(*joined)
        sizes = [len(parts[0]) for parts in given]
        return [self._answer(part.contiguous()) for part in torch.split(rows, sizes)]

    def _read(self, request: Any, name: str) -> Tensor:
        found = self.utilities.get_input_tensor_by_name(request, name)
        # Through DLPack: with NumPy 2, arrays do not pass this backend.
        return from_dlpack(found.to_dlpack()).to(self.device)

    def _answer(self, value: Tensor) -> Any:
        tensor = self.utilities.Tensor.from_dlpack(self.output, value)
        return self.utilities.InferenceResponse(output_tensors=[tensor])
