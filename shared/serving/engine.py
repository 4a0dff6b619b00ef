"""PyTorch networks in Triton's Python backend, on a CPU or a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from shared.computing import prepare
from shared.diffusion.precision import autocast
from shared.errors import InputError
from shared.settings import settings


class Instance:
    """A running instance of a served model; it uses as many CPU threads as a worker.

    Args:
        arguments: Triton's arguments of `TritonPythonModel.initialize`.

    Raises:
        InputError: the model was deployed for another type of GPU.

    Attributes:
        name: Triton's name of the model.
        folder: folder of the model's files.
        device: the device that the server gave to this instance.
        inputs: names of the model's inputs.
        parameters: the parameters of the model's configuration.
        precision: the parameter 'precision': 'fp32' or 'bf16'.
    """

    def __init__(self, arguments: dict[str, str]) -> None:
        prepare(settings().threads)
        self.name = arguments["model_name"]
        self.folder = Path(arguments["model_repository"]) / arguments["model_version"]
        gpu = arguments["model_instance_kind"] == "GPU"
        self.device = f"cuda:{arguments['model_instance_device_id']}" if gpu else "cpu"
        config = json.loads(arguments["model_config"])
        self.inputs = [str(tensor["name"]) for tensor in config["input"]]
        self.parameters = {
            name: str(value["string_value"]) for name, value in config["parameters"].items()
        }
        self.precision = self.parameters["precision"]
        wanted = self.parameters.get("gpu")
        if wanted and (present := torch.cuda.get_device_name(self.device)) != wanted:
            raise InputError(
                f"the TensorRT plan was built for {wanted}, but this server has {present}: deploy "
                "the model from a worker with the server's type of GPU"
            )


@contextmanager
def computing(device: str, precision: str) -> Iterator[None]:
    """Return a context for inference in 'fp32' or 'bf16'.

    On a CPU autocast sets the precision; on a GPU the weights have it already.
    """
    wanted = precision if device == "cpu" else "fp32"
    with torch.inference_mode(), autocast("cpu", wanted):
        yield


class Batched:
    """Answers many requests with one call of a network.

    Requests with the parameter `alone` get a call each, so that their bits depend on no other
    request.

    Args:
        utilities: Triton's `triton_python_backend_utils`.
        instance: the instance of the model.
        output: name of the network's output.
        network: maps the input tensors (rows first) to the output tensor.
    """

    def __init__(
        self, utilities: Any, instance: Instance, output: str, network: Callable[..., Tensor]
    ) -> None:
        self.utilities = utilities
        self.instance = instance
        self.output = output
        self.network = network

    def __call__(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each of Triton's requests with its own rows of the network's output."""
        groups: list[list[int]] = [[]]
        for place, request in enumerate(requests):
            if json.loads(request.parameters() or "{}").get("alone"):
                groups.append([place])
            else:
                groups[0].append(place)
        answers = {
            place: answer
            for group in filter(None, groups)
            for place, answer in zip(group, self._run([requests[n] for n in group]), strict=True)
        }
        return [answers[place] for place in range(len(requests))]

    def _run(self, requests: Sequence[Any]) -> list[Any]:
        try:
            return self._compute(requests)
        except Exception as error:
            if len(requests) > 1:  # try each alone, because one of them may be faulty
                return [answer for each in requests for answer in self._run([each])]
            reason = self.utilities.TritonError(f"{type(error).__name__}: {error}")
            return [self.utilities.InferenceResponse(output_tensors=[], error=reason)]

    def _compute(self, requests: Sequence[Any]) -> list[Any]:
        given = [
            [self._read(request, name) for name in self.instance.inputs] for request in requests
        ]
        joined = [
            torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*given, strict=True)
        ]
        with computing(self.instance.device, self.instance.precision):
            rows = self.network(*joined)
        sizes = [len(parts[0]) for parts in given]
        return [self._answer(part.contiguous()) for part in torch.split(rows, sizes)]

    def _read(self, request: Any, name: str) -> Tensor:
        tensor = self.utilities.get_input_tensor_by_name(request, name)
        # Use DLPack, because this backend cannot pass arrays of NumPy 2.
        return from_dlpack(tensor.to_dlpack()).to(self.instance.device)

    def _answer(self, value: Tensor) -> Any:
        tensor = self.utilities.Tensor.from_dlpack(self.output, value)
        return self.utilities.InferenceResponse(output_tensors=[tensor])
