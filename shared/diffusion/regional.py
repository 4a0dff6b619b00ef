"""Region-masked conditioning: each place of the image attends to crops of its own class only.

- The label map: each pixel's class is embedded, and the embeddings are folded onto the latent
  grid, so the cost does not grow with the number of classes.
- The crops: the autoencoder encodes them, and their latents are the tokens, in the same space
  as the image.
- A summary of a crop's tokens is spread over the area of its class. It carries the staining.
- In the UNet's attention levels, each place attends to the tokens of its classes. They carry
  the texture. Tokens do not contain the place of a crop, so crops cannot carry layout.

Map, crops and summaries are encoded once per image, only the UNet runs in each step. `keep` also
computes once what the UNet's first convolution makes of them, and the tokens' keys and values. The
cost grows with the number of given crops, not with the number of classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional

from shared.arrays import UInt8
from shared.contracts.base import Classes
from shared.contracts.recipe import DenoiserRecipe
from shared.diffusion.autoencoder import Autoencoder
from shared.diffusion.crops import Crop, filled
from shared.diffusion.denoiser import KEPT, TIME_SCALE, Denoiser, Encode, Tensors, distinct_rows
from shared.diffusion.region_attention import RegionAttention, bias_name

MAP_WIDTH = 8
"""Width of the embedding of a pixel's class."""

MASKED = -1e4
"""Attention bias of masked tokens: their softmax weight is 0, also in half precision."""

STEM = f"{KEPT}stem"
KEPT_BYTES = 1 << 30
"""Largest size of what `RegionalDenoiser.keep` adds; more is computed in each step."""


class Stem(nn.Conv2d):
    """The UNet's first convolution, of a sample and its features, in two parts.

    Args:
        sample, features: their channels.
        out: channels of the result.
    """

    def __init__(self, sample: int, features: int, out: int) -> None:
        super().__init__(sample + features, out, 3, padding=1)
        self.sample = sample

    def of_features(self, features: Tensor) -> Tensor:
        """Return the part of the features, (B, out, h, w)."""
        return functional.conv2d(features, self.weight[:, self.sample :], self.bias, padding=1)

    def forward(self, joined: Tensor) -> Tensor:
        """Map the sample and the features' part, (B, sample + out, h, w), to (B, out, h, w)."""
        sample, features = torch.split(joined, [self.sample, self.out_channels], 1)
        own: Tensor = functional.conv2d(sample, self.weight[:, : self.sample], padding=1)
        return own + features.to(own.dtype)


class RegionalDenoiser(Denoiser):
    """A UNet with region-masked cross-attention to the latents of crops.

    Args:
        classes: number of classes, background included.
        latent_channels: channels of the latent.
        factor: pixels per latent pixel.
        channels: channels of the UNet's levels.
        layers: residual layers per level.
        attention: per level, whether it has self- and cross-attention.
        condition_channels: width of the tokens, and of the encoded map.
        first: index of the first class with crops.
        crop_side: smaller crops are enlarged to this side (pixels) by mirroring. It is a
            constant, and not the largest side in a batch, so that an image does not depend on
            the other images of its batch.
        head_width: channels of an attention head; models of earlier releases do not name it.
    """

    crop_channels: ClassVar[int | None] = None
    """Channels of a crop's tokens before they are encoded; None means those of the latent."""

    kept_above: int = 0
    """Rows of the largest batch for which `keep` adds nothing."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        classes: int,
        latent_channels: int,
        factor: int,
        channels: tuple[int, ...],
        layers: int,
        attention: tuple[bool, ...],
        condition_channels: int,
        first: int,
        crop_side: int,
        head_width: int = 32,
    ) -> None:
        super().__init__()
        width = condition_channels
        # The last embedding stands for a dropped map.
        self.pixel_classes = nn.Embedding(classes + 1, MAP_WIDTH)
        self.map = nn.Sequential(
            nn.PixelUnshuffle(factor),
            nn.Conv2d(MAP_WIDTH * factor**2, width, 1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.crop = nn.Sequential(
            nn.Conv2d(self.crop_channels or latent_channels, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.crop_classes = nn.Embedding(classes, width)
        self.no_crop = nn.Parameter(torch.zeros(width))
        self.summary = nn.Sequential(
            nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.unet = UNet2DConditionModel(
            in_channels=latent_channels + 2 * width,
            out_channels=latent_channels,
            block_out_channels=channels,
            layers_per_block=layers,
            down_block_types=["CrossAttnDownBlock2D" if x else "DownBlock2D" for x in attention],
            up_block_types=["CrossAttnUpBlock2D" if x else "UpBlock2D" for x in attention[::-1]],
            # In diffusers this argument is the number of heads, in spite of its name.
            attention_head_dim=[max(1, size // head_width) for size in channels],
            cross_attention_dim=width,
            use_linear_projection=True,
        )
        self.unet.conv_in = Stem(latent_channels, 2 * width, channels[0])
        self.unet.set_attn_processor({n: RegionAttention(n) for n in self.unet.attn_processors})

    @classmethod
    def untrained(
        cls,
        recipe: DenoiserRecipe,
        size: int,
        classes: Classes,
        vae: Autoencoder,
        **settings: Any,
    ) -> Self:
        side = int(size * recipe.crop_max)
        return super().untrained(
            recipe, size, classes, vae, crop_side=side, head_width=recipe.head_width, **settings
        )

    def lay_out(
        self,
        labels: UInt8,
        crops: Sequence[Sequence[Crop]],
        use_map: Sequence[bool],
        use_crops: Sequence[bool],
        encode: Encode,
    ) -> Tensors:
        """See `Denoiser.lay_out`; N is the largest number of crops of an image.

        If all images are given the same list of crops, it is encoded once: the rows of `crops`,
        `kinds` and `present` are views of one.

        Returns:
            `labels` int32 (B, H, W); `crops` (B, N, C, s, s), their latents; `kinds` (B, N),
            their classes; `present` (B, N, s, s), True where a token exists; `shares`
            (B, N, h, w), the share of each latent pixel's area that is of the crop's class, or
            equal shares for all crops if the map is dropped.
        """
        batch, device = len(labels), self.device
        used = [list(own) if use else [] for own, use in zip(crops, use_crops, strict=True)]
        if all(use_crops) and all(own is crops[0] for own in crops):
            used = used[:1]
        most = max(1, *(len(own) for own in used))
        kinds = torch.tensor(
            [[crop.label for crop in own] + [-1] * (most - len(own)) for own in used]
        )
        spots = (kinds.flatten() >= 0).nonzero().squeeze(1).to(device)
        tokens, present = self._represent([crop.pixels for own in used for crop in own], encode)

        def by_image(values: Tensor) -> Tensor:
            """Spread (n, …), a row per crop of the batch, over (images, slots, …), else zero."""
            rows = values.new_zeros(len(used) * most, *values.shape[1:])
            rows[spots] = values
            spread = rows.view(len(used), most, *values.shape[1:])
            return spread.expand(batch, *spread.shape[1:])

        maps, kinds = torch.from_numpy(labels).to(device), kinds.to(device).expand(batch, -1)
        mapped = torch.tensor(list(use_map), device=device).view(-1, 1, 1)
        exists = kinds >= 0
        equal = exists / exists.sum(1, keepdim=True).clamp_min(1)
        areas = torch.where(
            mapped.unsqueeze(1), maps.unsqueeze(1) == kinds[..., None, None], equal[..., None, None]
        )
        return {
            "labels": torch.where(mapped, maps.int(), int(self.config.classes)),
            "crops": by_image(tokens),
            "kinds": kinds.clamp_min(0),
            "present": by_image(present),
            "shares": functional.avg_pool2d(areas, int(self.config.factor)),
        }

    def _represent(self, crops: list[UInt8], encode: Encode) -> tuple[Tensor, Tensor]:
        """Encode crops to latents (n, C, s, s), and mark existing tokens, bool (n, s, s)."""
        factor, channels = int(self.config.factor), int(self.config.latent_channels)
        smallest, device = self._min_cells, self.device
        cells = [max(1, len(crop) // factor) for crop in crops]
        sides = [max(smallest, own) for own in cells]
        most = max(sides, default=1)
        latents = torch.zeros(len(crops), channels, most, most, device=device)
        for side in sorted(set(sides)):
            rows = [row for row, own in enumerate(sides) if own == side]
            pixels = np.stack([filled(crops[row], side * factor) for row in rows])
            images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
            latents[rows, :, :side, :side] = encode(images.float() / 127.5 - 1).float()
        inside = torch.arange(most) < torch.tensor(cells).long().view(-1, 1)
        return latents, (inside.unsqueeze(1) & inside.unsqueeze(2)).to(device)

    @property
    def _min_cells(self) -> int:
        """The least side of an encoded crop, in latent pixels: `crop_side` / `factor` or 1."""
        return max(1, int(self.config.crop_side) // int(self.config.factor))

    def encode_condition(self, condition: Tensors) -> Tensors:
        present, batch = condition["present"].flatten(2), len(condition["labels"])
        latents = distinct_rows(condition["crops"])
        rows, most = latents.shape[:2]
        encoded = self._encode_crops(latents, condition["present"][:rows]).flatten(2)
        kinds = self.crop_classes(condition["kinds"][:rows]).unsqueeze(2)
        tokens = encoded.transpose(1, 2).view(rows, most, -1, encoded.shape[1]) + kinds
        summary = self._summary(tokens, present[:rows]).expand(batch, -1, -1)
        features = torch.cat(
            [
                self.map(self.pixel_classes(condition["labels"]).permute(0, 3, 1, 2)),
                torch.einsum("bnhw,bnc->bchw", condition["shares"], summary),
            ],
            1,
        )
        nothing = self.no_crop.expand(rows, 1, -1)
        return {
            "features": features,
            "tokens": torch.cat([nothing, tokens.flatten(1, 2)], 1).expand(batch, -1, -1),
            **self._biases(condition["shares"], present),
        }

    def keep(self, encoded: Tensors) -> Tensors:
        unet, batch = self.unet, len(encoded["tokens"])
        tokens = distinct_rows(encoded["tokens"]).to(unet.dtype)
        layers = [x for x in unet.modules() if isinstance(x, Attention) and x.is_cross_attention]
        width = sum(2 * layer.to_k.out_features for layer in layers)
        size = len(tokens) * tokens.shape[1] * width * tokens.element_size()
        if batch <= self.kept_above or size > KEPT_BYTES:
            return encoded
        added = {STEM: unet.conv_in.of_features(encoded["features"].to(unet.dtype))}
        for layer in layers:
            own = layer.processor.project(layer, tokens)
            added |= {name: value.expand(batch, -1, -1) for name, value in own.items()}
        return {**encoded, **added}

    def _encode_crops(self, latents: Tensor, present: Tensor) -> Tensor:
        """Encode latents (B, N, C, s, s) to (B · N, width, s, s), each crop within its own side."""
        first, activation, second = self.crop
        hidden = activation(first(latents.flatten(0, 1)))
        sides = present[..., 0].sum(2).clamp_min(self._min_cells).flatten()
        inside = torch.arange(present.shape[2], device=hidden.device) < sides.unsqueeze(1)
        square = inside.unsqueeze(1) & inside.unsqueeze(2)
        encoded: Tensor = second(hidden * square.unsqueeze(1))
        return encoded

    @staticmethod
    def join(parts: Sequence[Tensors]) -> Tensors:
        """Join encoded conditions; tokens are padded to one number, and the padding is masked."""
        if len(parts) == 1:
            return parts[0]
        most = max(part["tokens"].shape[1] for part in parts)

        def padded(name: str, value: Tensor) -> Tensor:
            if value.ndim == 3:
                return functional.pad(value, (0, 0, 0, most - value.shape[1]))
            if name.startswith("bias"):
                return functional.pad(value, (0, most - value.shape[3]), value=MASKED)
            return value

        names = [name for name in parts[0] if all(name in part for part in parts)]
        return {name: torch.cat([padded(name, part[name]) for part in parts]) for name in names}

    def _summary(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Summarize the mean and spread of each crop's tokens, (B, N, T, C) → (B, N, C).

        The summary of an absent crop is 0.
        """
        weight = present.unsqueeze(-1).to(tokens.dtype)
        count = weight.sum(2).clamp_min(1)
        mean = (tokens * weight).sum(2) / count
        spread = ((tokens - mean.unsqueeze(2)).square() * weight).sum(2) / count
        joined = torch.cat([mean, (spread + 1e-6).sqrt()], -1)
        summary: Tensor = self.summary(joined) * present.any(2).unsqueeze(-1)
        return summary

    def _biases(self, shares: Tensor, present: Tensor) -> Tensors:
        """Return the attention bias of each level, (B, 1, places, 1 + tokens).

        It is the logarithm of the share of a place's area that is of the token's class, so that a
        place on a border attends to each class in proportion to its area. The first token is
        "no crop".
        """
        biases = {}
        for level, attends in enumerate(self.config.attention):
            if level:
                shares = functional.avg_pool2d(shares, 2)
            last = level == len(self.config.attention) - 1  # the middle block always attends
            if attends or last:
                reach = shares.clamp_min(1e-9).log().masked_fill(shares <= 0, MASKED)
                spread = reach.flatten(2).transpose(1, 2).unsqueeze(-1)  # (B, places, N, 1)
                bias = spread.expand(-1, -1, -1, present.shape[2]).flatten(2)
                bias = bias.masked_fill(~present.flatten(1).unsqueeze(1), MASKED)
                biases[bias_name(bias.shape[1])] = functional.pad(bias, (1, 0)).unsqueeze(1)
        return biases

    def forward(self, sample: Tensor, time: Tensor, encoded: Tensors) -> Tensor:
        dtype = self.unet.dtype
        features = encoded.get(STEM)
        if features is None:
            features = self.unet.conv_in.of_features(encoded["features"].to(dtype))
        joined = torch.cat([sample, features], 1)
        velocity: Tensor = self.unet(
            joined.to(dtype),
            time * TIME_SCALE,
            encoded["tokens"].to(dtype),
            cross_attention_kwargs={"regions": encoded},
            return_dict=False,
        )[0]
        return velocity

    def adapted(self, state: Tensors, source: list[str], target: list[str]) -> Tensors:
        changed = {}
        for name in ("pixel_classes.weight", "crop_classes.weight"):
            table = state[name]
            known = {kind: table[index] for index, kind in enumerate(source)}
            mean = table[1 : len(source)].mean(0)
            rows = [known.get(kind, mean) for kind in target]
            changed[name] = torch.stack([*rows, *table[len(source) :]])
        return {**state, **changed}
