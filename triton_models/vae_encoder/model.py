"""The VAE's encoder, in PyTorch."""

from typing import Any

import torch
import triton_python_backend_utils as pb_utils

from shared.diffusion.autoencoder import encode_latents, read_vae
from shared.serving.engine import Batched, computing, device_of, parameters, version_folder


class TritonPythonModel:
    """Inputs and outputs: `shared.serving.contract.encoder_tensors`."""

    def initialize(self, args: dict[str, str]) -> None:
        device, precision = device_of(args), parameters(args)["precision"]
        vae = read_vae(version_folder(args)).to(device)

        def encode(images: torch.Tensor) -> torch.Tensor:
            with computing(device, precision):
                return encode_latents(vae, images).float()

        self.answer = Batched(pb_utils, ["images"], "latents", encode, device)

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.answer(requests)
