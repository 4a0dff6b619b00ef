"""Training objectives of the autoencoder, its decoder alone, the denoiser, and a student."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.train.critic import PatchCritic, critic_loss, deceit_loss
from services.train.data import Batch
from services.train.perceptual import PerceptualLoss
from shared.contracts.recipe import LayoutRecipe, StudentRecipe, VaeRecipe
from shared.diffusion import schedule
from shared.diffusion.autoencoder import (
    Autoencoder,
    encode_latents,
    encode_raw,
    to_raw,
    to_unit,
)
from shared.diffusion.denoiser import Denoiser, Tensors
from shared.diffusion.flow import (
    Solver,
    draw_noise,
    draw_times,
    flow_loss,
    guided,
)
from shared.diffusion.guidance import Guidance
from shared.diffusion.layouts import make_layouts, to_grid, velocity

BLOCK = 16
"""Side in pixels of the blocks whose mean staining is compared."""

STAINING_WEIGHT = 2.0
"""Weight of the staining loss in the loss of the decoder."""

NOISE = 0.15
"""Largest standard deviation of the noise on normalized latents, when the decoder is trained."""

SIZE_WEIGHT = 1e-4
"""Weight of the mean square of latents: it bounds them, and is too small to cost detail."""


NOISY_SHARE = 0.75
"""Share of images whose latents get noise in the autoencoder's training."""
CHANNEL_SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)
"""Shares of the channels that an image may be decoded from alone."""


class VaeObjective:
    """Reconstruct pixels and their differences from latents that are kept small.

    If the recipe says so, images are decoded from noisy latents (Yang et al. 2025, l-DeTok), from
    the first channels alone (Chen et al. 2025, DC-AE 1.5), and at half their size from
    average-pooled latents (Kouzelis et al. 2025, EQ-VAE), because a denoiser learns such latents
    sooner.
    """

    def __init__(self, vae: Autoencoder, recipe: VaeRecipe, device: str) -> None:
        self.vae = vae.to(device)
        self.module: nn.Module = self.vae
        self.recipe = recipe
        self.device = device

    def loss(self, batch: Batch, seeds: Sequence[int], step: int) -> dict[str, Tensor]:
        images = to_unit(torch.from_numpy(batch.images).to(self.device))
        latents = encode_raw(self.vae, images)
        given, kept = self._noisy(latents, seeds), self._kept(latents, seeds)
        decoded = self._decode(given * kept)
        total = pixel_loss(decoded, images) + SIZE_WEIGHT * latents.float().square().mean()
        if self.recipe.halved and step % 2 == 0:
            half = self._decode(functional.avg_pool2d(given, 2) * kept)
            wanted = functional.avg_pool2d(images, 2)
            total = total + self.recipe.halved * pixel_loss(half, wanted)
        return {"loss": total, "psnr": psnr(decoded, images)}

    def _decode(self, latents: Tensor) -> Tensor:
        images: Tensor = self.vae.decode(latents).sample.float()
        return images

    def _noisy(self, latents: Tensor, seeds: Sequence[int]) -> Tensor:
        """Add noise of uniform strength to three images in four, relative to the latents' size."""
        if not self.recipe.noise:
            return latents
        chance, strength = self._draws(seeds)[:2]
        strength = self.recipe.noise * strength * (chance < NOISY_SHARE)
        noise = strength.view(-1, 1, 1, 1) * draw_noise(seeds, latents.shape[1:])
        noisy: Tensor = latents + latents.float().square().mean().sqrt() * noise.to(self.device)
        return noisy

    def _kept(self, latents: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return 1 for the channels that each image is decoded from, else 0, (B, C, 1, 1)."""
        channels = latents.shape[1]
        if not self.recipe.ordered:
            return latents.new_ones(1, channels, 1, 1)
        chance, place = self._draws(seeds)[2:]
        shares = torch.tensor(CHANNEL_SHARES)[
            (place * len(CHANNEL_SHARES)).long().clamp(max=len(CHANNEL_SHARES) - 1)
        ]
        count = torch.where(chance < self.recipe.ordered, shares, 1.0) * channels
        kept = torch.arange(channels) < count.round().clamp(min=1).unsqueeze(1)
        return kept.to(latents).view(-1, channels, 1, 1)

    @staticmethod
    def _draws(seeds: Sequence[int]) -> Tensor:
        """Draw four numbers from 0 to 1 for each seed, (4, B), independent of its noise."""
        draws: Tensor = torch.special.ndtr(draw_noise([seed ^ 1 for seed in seeds], (4,)))
        return draws.T


class DecoderObjective:
    """Trains the decoder with a pixel loss, a patch critic and a perceptual loss.

    The critic and the perceptual loss teach the fine texture of chromatin and fibres, which a
    pixel loss smooths away. They tolerate a shift of colours, so the mean staining of blocks is
    compared, too. The encoder is frozen, so that the meaning of latents does not change. Latents
    get a little noise, because the latents that a denoiser makes differ a little from those of
    real images (Zheng et al. 2025, RAE).

    Args:
        vae: the autoencoder.
        perceptual: None leaves out the perceptual loss.
        device: device of the networks.
    """

    def __init__(self, vae: Autoencoder, perceptual: PerceptualLoss | None, device: str) -> None:
        self.vae = vae.to(device).requires_grad_(False)
        self.critic = PatchCritic().to(device)
        self.perceptual = perceptual
        self.last = next(self.vae.decoder.conv_out.parameters())
        trained = ("decoder", "post_quant_conv")  # AutoencoderDC has no post_quant_conv
        decoder = nn.ModuleList([part for name, part in vae.named_children() if name in trained])
        self.module: nn.Module = nn.ModuleDict(
            {"decoder": decoder.requires_grad_(True), "critic": self.critic}
        )
        self.device = device

    def loss(self, batch: Batch, seeds: Sequence[int], step: int) -> dict[str, Tensor]:
        images = to_unit(torch.from_numpy(batch.images).to(self.device))
        with torch.no_grad():
            latents = encode_latents(self.vae, images).float()
        noisy = latents + self._noise(seeds, latents.shape[1:])
        decoded = self.vae.decode(to_raw(self.vae, noisy)).sample.float()
        figures = {"psnr": psnr(decoded, images), "staining": staining_loss(decoded, images)}
        total = pixel_loss(decoded, images) + STAINING_WEIGHT * figures["staining"]
        if self.perceptual is not None:
            figures["perceptual"] = self.perceptual(decoded, images)
            total = total + figures["perceptual"]
        figures["critic"] = critic_loss(self.critic, images, decoded)
        deceit = deceit_loss(self.critic, decoded, total, self.last)
        return {"loss": total + deceit + figures["critic"], **figures}

    def _noise(self, seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Draw noise whose standard deviation is uniform from 0 to `NOISE`, one per seed."""
        others = [seed ^ 1 for seed in seeds]  # so that strength and noise are independent
        strength = torch.special.ndtr(draw_noise(others, (1, 1, 1)))
        noise: Tensor = NOISE * strength * draw_noise(seeds, shape)
        return noise.to(self.device)


def pixel_loss(decoded: Tensor, real: Tensor) -> Tensor:
    """Return the L1 distance of pixels, plus that of their finite differences, for sharp edges."""
    error = decoded - real
    return error.abs().mean() + sum(error.diff(dim=axis).abs().mean() for axis in (2, 3))


def staining_loss(decoded: Tensor, real: Tensor) -> Tensor:
    """Return the L1 distance of the mean optical density of blocks of `BLOCK` × `BLOCK` pixels."""

    def density(images: Tensor) -> Tensor:
        # the optical density of `shared.imaging.density`, for images in [-1, 1]
        light = (images.clamp(-1, 1) * 127.5 + 128.5) / 256
        return functional.avg_pool2d(-light.log10(), BLOCK)

    return functional.l1_loss(density(decoded), density(real))


def psnr(decoded: Tensor, real: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of images in [-1, 1], in dB."""
    return 10 * torch.log10(4 / functional.mse_loss(decoded.detach(), real))


class DenoiserObjective:
    """Trains the denoiser by flow matching on latents, with the conditions that a batch keeps."""

    def __init__(self, denoiser: Denoiser, vae: Autoencoder, device: str) -> None:
        self.denoiser: Denoiser = denoiser.to(device)
        self.module: nn.Module = self.denoiser
        self.vae = vae.to(device).eval().requires_grad_(False)
        self.device = device

    def loss(self, batch: Batch, seeds: Sequence[int], step: int) -> dict[str, Tensor]:
        latents = self._latents(batch)
        condition = self._lay_out(batch, True, True)
        times = draw_times(seeds).to(self.device)
        noise = draw_noise(seeds, latents.shape[1:]).to(self.device)
        return {"loss": flow_loss(self.denoiser, latents, condition, times, noise)}

    def _lay_out(self, batch: Batch, use_map: bool, use_crops: bool) -> Tensors:
        """Turn the batch's conditions into tensors.

        `use_map` or `use_crops` False drops that condition for all images.
        """
        return self.denoiser.lay_out(
            batch.labels,
            batch.crops,
            [use_map and use for use in batch.use_map],
            [use_crops and use for use in batch.use_crops],
            lambda pixels: encode_latents(self.vae, pixels).float(),
        )

    @torch.no_grad()
    def _latents(self, batch: Batch) -> Tensor:
        if batch.latents is not None:
            return torch.from_numpy(batch.latents).to(self.device).float()
        images = to_unit(torch.from_numpy(batch.images).to(self.device))
        return encode_latents(self.vae, images).float()


class StudentObjective(DenoiserObjective):
    """Trains a student, whose one step replaces several of a teacher (PeRFlow, Yan et al. 2024).

    The time from noise to image is cut into `sampling_steps` equal parts; batches train them in
    turn. From a noisy latent at the beginning of a part, the teacher takes guided steps to the
    end of the part; the student learns the mean velocity of these steps.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        teacher: Denoiser,
        vae: Autoencoder,
        recipe: StudentRecipe,
        device: str,
    ) -> None:
        super().__init__(denoiser, vae, device)
        self.teacher: Denoiser = teacher.to(device).eval().requires_grad_(False)
        self.recipe = recipe

    def loss(self, batch: Batch, seeds: Sequence[int], step: int) -> dict[str, Tensor]:
        latents = self._latents(batch)
        noise = draw_noise(seeds, latents.shape[1:]).to(self.device)
        parts = self.recipe.sampling_steps
        part = step % parts
        time = schedule.times(parts)[part]
        start = (1 - time) * latents + time * noise
        guidance = Guidance.from_scale(self.recipe.guidance)
        conditions = [self._lay_out(batch, *branch) for branch in guidance.branches]
        with torch.no_grad():
            target = (start - self._end_of_part(guidance, conditions, start, part)) * parts
        times = torch.full((len(start),), time, device=self.device)
        predicted = self.denoiser(start, times, self.denoiser.encode_condition(conditions[0]))
        return {"loss": (predicted.float() - target).square().mean()}

    def _end_of_part(
        self, guidance: Guidance, conditions: Sequence[Tensors], start: Tensor, part: int
    ) -> Tensor:
        """Return the latent at the end of a part, to which the teacher denoises `start`.

        `conditions` has one entry per branch of the guidance.
        """
        encoded = self.teacher.join([self.teacher.encode_condition(c) for c in conditions])
        velocity = guided(self.teacher, encoded, guidance)
        steps = self.recipe.teacher_steps
        solver = Solver(start, self.recipe.sampling_steps * steps, done=part * steps)
        for _ in range(steps):
            solver.advance(velocity(solver.sample, solver.time))
        return solver.sample


class LayoutObjective:
    """Trains a layout model by flow matching on the coarse grids of label maps."""

    def __init__(self, recipe: LayoutRecipe, labels: int, device: str) -> None:
        self.model = make_layouts(recipe, labels).to(device)
        self.module: nn.Module = self.model
        self.side, self.labels, self.device = recipe.side, labels, device

    def loss(self, batch: Batch, seeds: Sequence[int], step: int) -> dict[str, Tensor]:
        maps = torch.from_numpy(batch.labels).to(self.device)
        grid = to_grid(maps, self.labels, self.side)
        shares = (1 + grid.mean((2, 3))) / 2
        times = draw_times(seeds).to(self.device)
        noise = draw_noise(seeds, grid.shape[1:]).to(self.device)
        share = times.view(-1, 1, 1, 1)
        found = velocity(self.model, (1 - share) * grid + share * noise, times, shares)
        return {"loss": (found.float() - (noise - grid)).square().mean()}
