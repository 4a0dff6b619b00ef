"""The sampler of a Triton server: requests to images, with engines that answer over BLS."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from shared.contracts.sampling import Sampling
from shared.diffusion.autoencoder import decoded_at_a_time
from shared.diffusion.crops import Crop
from shared.diffusion.denoiser import Denoiser, Tensors
from shared.diffusion.flow import Solver, draw_noise
from shared.diffusion.guidance import Guidance
from shared.diffusion.pipeline import check_inputs
from shared.diffusion.staining import match_staining
from shared.errors import InputError
from shared.serving.batcher import StepBatcher, Trajectory
from shared.serving.contract import MOST_CROPS, MOST_ROWS, most_rows
from shared.serving.engine import computing

P = ParamSpec("P")
UInt8 = NDArray[np.uint8]

BESIDE = 2
"""Requests whose conditions are encoded, or whose images are stained, at a time."""


class Options(Sampling):
    """What a request may ask of the sampler; see `HeteroTissuePipeline.__call__`."""

    use_map: bool = True
    use_crops: bool = True
    progress: bool = Field(False, description="answer after every step")
    urgent: bool = Field(False, description="go before all requests that are not")
    alone: bool = Field(
        True, description="have batches of its own, so that its bits depend on nothing else"
    )


@dataclass(frozen=True)
class Engines:
    """What the sampler asks: each a call of one of the server's models.

    `encode` and `decode` are told whether the call must be `alone`, see `Options`.
    """

    denoise: Callable[[Tensor, Tensor, Tensors], Awaitable[Tensor]]
    encode: Callable[[Tensor, bool], Awaitable[Tensor]]
    decode: Callable[[Tensor, bool], Awaitable[Tensor]]

    def in_turn(self) -> Engines:
        """The same, one call at a time: two would share the cores of a CPU, and take longer."""
        turn = asyncio.Lock()

        def one_at_a_time(engine: Callable[P, Awaitable[Tensor]]) -> Callable[P, Awaitable[Tensor]]:
            async def ask(*given: P.args, **named: P.kwargs) -> Tensor:
                async with turn:
                    return await engine(*given, **named)

            return ask

        return Engines(
            one_at_a_time(self.denoise), one_at_a_time(self.encode), one_at_a_time(self.decode)
        )


class InFlightSampler:
    """Makes images of many requests at a time.

    Args:
        denoiser: encodes conditions; its UNet is not used.
        engines: run the networks.
        size: side of the images that it makes, pixels.
        device: where latents are.
        precision: 'fp32' or 'bf16', of the conditions.
    """

    def __init__(
        self, denoiser: Denoiser, engines: Engines, *, size: int, device: str, precision: str
    ) -> None:
        self.denoiser = denoiser
        self.engines = engines.in_turn() if device == "cpu" else engines
        self.size = size
        self.device = device
        self.precision = precision
        # Not the loop's own threads: the engines' calls take those, and would wait for ours.
        self._beside = ThreadPoolExecutor(BESIDE)
        self.batcher = StepBatcher(self.engines.denoise, type(denoiser).join, MOST_ROWS)

    async def __call__(
        self,
        labels: UInt8,
        crops: Sequence[Sequence[Crop]],
        seeds: Sequence[int],
        options: Options,
        report: Callable[[int], None],
        wanted: Callable[[], bool],
    ) -> Tensor:
        """Make one image per label map, uint8 (batch, H, W, 3).

        Args:
            labels, crops, seeds: see `HeteroTissuePipeline.__call__`.
            options: how they are made.
            report: called with the number of steps done.
            wanted: asked before every step; False cancels the request.

        Raises:
            InputError: the request does not fit the model.
            asyncio.CancelledError: it is no longer wanted.
        """
        check_inputs(labels, crops, seeds, self.denoiser)
        if labels.shape[1:] != (self.size, self.size):
            height, width = labels.shape[1:]
            raise InputError(f"the model makes {self.size} px, not maps of {height}×{width}")
        settings = self.denoiser.config
        factor = int(settings.factor)
        guidance = Guidance.from_scale(options, options.use_map, options.use_crops)
        shape = (
            int(settings.latent_channels),
            labels.shape[1] // factor,
            labels.shape[2] // factor,
        )
        with self.batcher.in_flight(options.urgent):
            encoded = await self._encode(labels, crops, guidance.branches, options.alone)
            trajectory = Trajectory(
                Solver(
                    draw_noise(seeds, shape).to(self.device), options.steps, options.first_order
                ),
                encoded,
                guidance,
                urgent=options.urgent,
                alone=options.alone,
                report=report,
                wanted=wanted,
            )
            latents = await self.batcher.run(trajectory)
            parts = torch.split(latents, decoded_at_a_time(self.size**2, self.device))
            images = torch.cat([await self._decode(part, options) for part in parts])
            if not (options.use_map and options.use_crops):
                return images
            return await asyncio.get_running_loop().run_in_executor(
                self._beside, match_staining, images, labels, crops, options.staining
            )

    async def _encode(
        self,
        labels: UInt8,
        crops: Sequence[Sequence[Crop]],
        branches: list[tuple[bool, bool]],
        alone: bool,
    ) -> Tensors:
        """Encode conditions beside the loop, so that other requests' steps go on."""
        loop = asyncio.get_running_loop()

        def encode(images: Tensor) -> Tensor:
            # Images of a request may have more crops than the encoder takes at a time.
            answers = [
                asyncio.run_coroutine_threadsafe(_awaited(self.engines.encode(part, alone)), loop)
                for part in torch.split(images, most_rows("vae_encoder", self.size))
            ]
            return torch.cat([answer.result() for answer in answers])

        def work() -> Tensors:
            with computing(self.device, self.precision):
                found = self.denoiser.encode_branches(labels, crops, branches, encode)
                return {n: value.float().contiguous() for n, value in found.items()}

        return await loop.run_in_executor(self._beside, work)

    async def _decode(self, latents: Tensor, options: Options) -> Tensor:
        if not options.urgent:
            await self.batcher.calm.wait()
        return await self.engines.decode(latents, options.alone)


async def _awaited(answer: Awaitable[Tensor]) -> Tensor:
    return await answer


def unpack_crops(
    pixels: UInt8, labels: NDArray[np.int32], sides: NDArray[np.int32], corners: NDArray[np.int32]
) -> list[list[Crop]]:
    """Turn the tensors of `contract.SAMPLER_INPUTS` into crops, image by image.

    Raises:
        InputError: there are too many, or a crop's side is beyond its pixels.
    """
    if pixels.shape[1] > MOST_CROPS:
        raise InputError(f"{pixels.shape[1]} crops of an image are more than {MOST_CROPS}")
    if ((sides < 1) | (sides > pixels.shape[2]))[labels >= 0].any():
        raise InputError(f"crop_sides must be 1 to {pixels.shape[2]}, the side of `crops`")
    return [
        [
            Crop(int(label), int(x), int(y), image[:side, :side])
            for image, label, side, (x, y) in zip(*own, strict=True)
            if label >= 0
        ]
        for own in zip(pixels, labels, sides, corners, strict=True)
    ]


def pack_crops(
    crops: Sequence[Sequence[Crop]],
) -> tuple[UInt8, NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Turn crops into the tensors that `unpack_crops` reads."""
    most = max([1, *(len(own) for own in crops)])
    side = max([len(crop.pixels) for own in crops for crop in own], default=1)
    pixels = np.zeros((len(crops), most, side, side, 3), np.uint8)
    labels = np.full((len(crops), most), -1, np.int32)
    sides = np.ones((len(crops), most), np.int32)
    corners = np.zeros((len(crops), most, 2), np.int32)
    for index, own in enumerate(crops):
        for number, crop in enumerate(own):
            size = len(crop.pixels)
            pixels[index, number, :size, :size] = crop.pixels
            labels[index, number], sides[index, number] = crop.label, size
            corners[index, number] = crop.x, crop.y
    return pixels, labels, sides, corners


def as_array(tensor: Tensor) -> NDArray[np.generic]:
    """A tensor on any device as an array."""
    found: NDArray[np.generic] = tensor.cpu().numpy()
    return found
