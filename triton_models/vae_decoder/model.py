"""The VAE's decoder, in PyTorch."""

from typing import Any

import torch
import triton_python_backend_utils as pb_utils

from shared.diffusion.autoencoder import decode_latents, read_vae, to_pixels
from shared.serving.engine import Batched, computing, device_of, parameters, version_folder


class TritonPythonModel:
    """Inputs and outputs: `shared.serving.contract.decoder_tensors`."""

    def initialize(self, args: dict[str, str]) -> None:
        device, precision = device_of(args), parameters(args)["precision"]
        vae = read_vae(version_folder(args)).to(device)

        def decode(latents: torch.Tensor) -> torch.Tensor:
            with computing(device, precision):
                return to_pixels(decode_latents(vae, latents))

        self.answer = Batched(pb_utils, ["latents"], "images", decode, device)

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.answer(requests)
