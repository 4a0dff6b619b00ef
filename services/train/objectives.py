"""The two losses: of the autoencoder, and of the denoiser."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from services.train.critic import PatchCritic, critic_loss, deceit_loss
from services.train.data import Batch
from shared.contracts.train import VaeRecipe
from shared.diffusion.autoencoder import encode_latents, to_unit
from shared.diffusion.denoiser import Denoiser
from shared.diffusion.flow import draw_noise, draw_times, flow_loss


class VaeObjective:
    """Reconstruct pixels and their differences: L1 + L1 of finite differences + a little KL.

    The differences keep nuclear edges and chromatin, which plain L1 smooths away; in the
    last steps a patch critic asks for the fine texture that no such loss can ask for.
    """

    def __init__(self, vae: AutoencoderKL, recipe: VaeRecipe, device: str) -> None:
        self.vae = vae.to(device)
        self.critic = PatchCritic().to(device)
        self.module: nn.Module = nn.ModuleDict({"vae": self.vae, "critic": self.critic})
        self.recipe = recipe
        self.device = device

    def loss(self, batch: Batch, seeds: Sequence[int], step: int) -> dict[str, Tensor]:
        images = to_unit(torch.from_numpy(batch.images)).to(self.device)
        posterior = self.vae.encode(images).latent_dist
        noise = draw_noise(seeds, posterior.mean.shape[1:]).to(self.device)
        decoded = self.vae.decode(posterior.mean + posterior.std * noise).sample.float()
        pixel = (decoded - images).abs().mean()
        edges = sum(
            (decoded.diff(dim=axis) - images.diff(dim=axis)).abs().mean() for axis in (2, 3)
        )
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        total = pixel + edges + self.recipe.kl_weight * posterior.mean[0].numel() * kl
        mse = functional.mse_loss(decoded.detach(), images)
        figures = {"psnr": 10 * torch.log10(4 / mse), "kl": kl}
        if step >= self.recipe.steps - self.recipe.adversarial_steps:
            last_layer = self.vae.decoder.conv_out.weight
            judged = critic_loss(self.critic, images, decoded)
            total = total + deceit_loss(self.critic, decoded, total, last_layer) + judged
            figures["critic"] = judged
        return {"loss": total, **figures}


class DenoiserObjective:
    """Flow matching on latents, with map and crops dropped at random."""

    def __init__(self, denoiser: Denoiser, vae: AutoencoderKL, device: str) -> None:
        self.denoiser: Denoiser = denoiser.to(device)
        self.module: nn.Module = self.denoiser
        self.vae = vae.to(device).eval().requires_grad_(False)
        self.device = device

    def loss(self, batch: Batch, seeds: Sequence[int], step: int) -> dict[str, Tensor]:
        latents = self._latents(batch)
        condition = self.denoiser.lay_out(
            batch.labels,
            batch.crops,
            batch.use_map,
            batch.use_crops,
            lambda pixels: encode_latents(self.vae, pixels).float(),
        )
        times = draw_times(seeds).to(self.device)
        noise = draw_noise(seeds, latents.shape[1:]).to(self.device)
        return {"loss": flow_loss(self.denoiser, latents, condition, times, noise)}

    @torch.no_grad()
    def _latents(self, batch: Batch) -> Tensor:
        if batch.latents is not None:
            return torch.from_numpy(batch.latents).to(self.device).float()
        images = to_unit(torch.from_numpy(batch.images)).to(self.device)
        return encode_latents(self.vae, images).float()
