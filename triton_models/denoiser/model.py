"""The denoiser, in PyTorch: one step of a batch."""

from typing import Any

import torch
import triton_python_backend_utils as pb_utils

from shared.diffusion.conditionings import load_denoiser
from shared.diffusion.gpu import prepare_denoiser
from shared.diffusion.precision import cast_weights
from shared.serving.engine import Batched, Instance


class TritonPythonModel:
    """Serves the denoiser; its tensors are those of `shared.serving.protocol.engine_tensors`."""

    def initialize(self, args: dict[str, str]) -> None:
        own = Instance(args)
        denoiser = load_denoiser(own.folder).to(own.device)
        prepare_denoiser(denoiser, own.precision)
        cast_weights(denoiser.unet, own.device, own.precision)
        names = own.inputs[2:]

        def step(
            sample: torch.Tensor, time: torch.Tensor, *condition: torch.Tensor
        ) -> torch.Tensor:
            velocity: torch.Tensor = denoiser(
                sample, time, dict(zip(names, condition, strict=True))
            )
            return velocity.float()

        self.answer = Batched(pb_utils, own, "velocity", step)

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.answer(requests)
