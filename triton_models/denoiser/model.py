"""One denoising step of a batch, in PyTorch."""

import json
from typing import Any

import torch
import triton_python_backend_utils as pb_utils

from shared.diffusion.conditionings import load_denoiser
from shared.serving.engine import Batched, computing, device_of, parameters, version_folder


class TritonPythonModel:
    """Inputs and outputs: `shared.serving.contract.denoiser_tensors`."""

    def initialize(self, args: dict[str, str]) -> None:
        device, precision = device_of(args), parameters(args)["precision"]
        denoiser = load_denoiser(version_folder(args)).to(device)
        names = [tensor["name"] for tensor in json.loads(args["model_config"])["input"]]

        def step(
            sample: torch.Tensor, time: torch.Tensor, *condition: torch.Tensor
        ) -> torch.Tensor:
            encoded = dict(zip(names[2:], condition, strict=True))
            with computing(device, precision):
                return denoiser(sample, time, encoded).float()

        self.answer = Batched(pb_utils, names, "velocity", step, device)

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.answer(requests)
