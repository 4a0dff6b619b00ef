"""The two losses: of the autoencoder, and of the denoiser."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from services.train.data import Batch
from shared.contracts.train import DenoiserRecipe, VaeRecipe
from shared.diffusion.autoencoder import encode_latents, to_unit
from shared.diffusion.condition import condition_tensor
from shared.diffusion.denoiser import Denoiser
from shared.diffusion.flow import draw_times, flow_loss


class VaeObjective:
    """Reconstruct pixels and their differences: L1 + L1 of finite differences + a little KL.

    The differences keep nuclear edges and chromatin, which plain L1 smooths away.
    """

    def __init__(self, vae: AutoencoderKL, recipe: VaeRecipe, device: str) -> None:
        self.module = vae.to(device)
        self.recipe = recipe
        self.device = device

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        images = to_unit(torch.from_numpy(batch.images)).to(self.device)
        posterior = self.module.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(self.device)
        decoded = self.module.decode(posterior.mean + posterior.std * noise).sample.float()
        pixel = (decoded - images).abs().mean()
        edges = sum(
            (decoded.diff(dim=axis) - images.diff(dim=axis)).abs().mean() for axis in (2, 3)
        )
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        total = pixel + edges + self.recipe.kl_weight * posterior.mean[0].numel() * kl
        mse = functional.mse_loss(decoded.detach(), images)
        return {"loss": total, "psnr": 10 * torch.log10(4 / mse), "kl": kl}


class DenoiserObjective:
    """Flow matching on latents, with map and crops dropped at random."""

    def __init__(
        self, denoiser: Denoiser, vae: AutoencoderKL, recipe: DenoiserRecipe, device: str
    ) -> None:
        self.module = denoiser.to(device)
        self.vae = vae.to(device).eval().requires_grad_(False)
        self.recipe = recipe
        self.device = device

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        recipe, count = self.recipe, len(batch.images)
        with torch.no_grad():
            images = to_unit(torch.from_numpy(batch.images)).to(self.device)
            latents = encode_latents(self.vae, images).float()
        draw = torch.rand(count, generator=generator)
        both = draw < recipe.drop_both
        no_map = both | (draw >= 1 - recipe.drop_map)
        no_crops = both | ((draw < recipe.drop_both + recipe.drop_crops) & ~both)
        condition = condition_tensor(
            batch.labels,
            batch.crops,
            int(self.module.config.classes),
            use_map=(~no_map).tolist(),
            use_crops=(~no_crops).tolist(),
        ).to(self.device)
        times = draw_times(count, generator).to(self.device)
        noise = torch.randn(latents.shape, generator=generator).to(self.device)
        return {"loss": flow_loss(self.module, latents, condition, times, noise)}
