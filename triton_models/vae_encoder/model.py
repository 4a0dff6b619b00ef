"""The VAE's encoder, in PyTorch."""

from typing import Any

import triton_python_backend_utils as pb_utils

from shared.diffusion.autoencoder import encode_latents, read_vae
from shared.diffusion.gpu import prepare_vae
from shared.serving.engine import Batched, Instance


class TritonPythonModel:
    """Serves the encoder; its tensors are those of `shared.serving.protocol.engine_tensors`."""

    def initialize(self, args: dict[str, str]) -> None:
        own = Instance(args)
        vae = read_vae(own.folder).to(own.device)
        prepare_vae(vae, own.precision)
        self.answer = Batched(
            pb_utils, own, "latents", lambda images: encode_latents(vae, images).float()
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.answer(requests)
