"""The sampler of a Triton server: it makes the images of many requests at a time.

It runs the networks by calling the server's other models (BLS, business logic scripting).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from shared.arrays import UInt8
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
from shared.serving.deployments import check_crops
from shared.serving.engine import computing
from shared.serving.priority import Priority
from shared.serving.protocol import MAX_CROPS, MAX_ROWS, max_rows

P = ParamSpec("P")

THREADS = 2
"""Number of requests whose conditions are encoded or whose staining is matched at a time."""


class RequestOptions(Sampling):
    """The parameters of a request to the sampler; see `HeteroTissuePipeline.__call__`."""

    use_map: bool = True
    use_crops: bool = True
    at_step: int = Field(0, ge=0, description="step of the given samples, whose velocity is asked")
    progress: bool = Field(False, description="send a response after every step")
    priority_class: Priority = Field(
        Priority.BULK, description="its place in the batcher; Triton has a `priority` of its own"
    )
    alone: bool = Field(
        True, description="stay in batches of its own, so that its bits depend on no other request"
    )


@dataclass(frozen=True)
class Engines:
    """Calls of the networks on the server.

    Attributes:
        denoise: predicts velocities, see `shared.serving.batcher.Denoise`.
        encode: takes images and `alone`, see `RequestOptions`; returns latents.
        decode: takes latents and `alone`; returns images.
    """

    denoise: Callable[[Tensor, Tensor, Tensors], Awaitable[Tensor]]
    encode: Callable[[Tensor, bool], Awaitable[Tensor]]
    decode: Callable[[Tensor, bool], Awaitable[Tensor]]

    def in_turn(self) -> Engines:
        """Return engines that run one call at a time, because two would share a CPU's cores."""
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
    """Makes the images of many requests at a time.

    Args:
        denoiser: encodes the conditions; its UNet is not used.
        engines: calls of the networks.
        size: side of the images, pixels.
        device: device of the latents.
        precision: 'fp32' or 'bf16', the precision of encoding conditions on a CPU.
        max_tokens: largest number of tokens of an image's crops; None: any.
        rows: rows of the denoiser's largest batch.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        engines: Engines,
        *,
        size: int,
        device: str,
        precision: str,
        max_tokens: int | None = None,
        rows: int = MAX_ROWS,
    ) -> None:
        self.denoiser = denoiser
        self.engines = engines.in_turn() if device == "cpu" else engines
        self.size = size
        self.device = device
        self.precision = precision
        self.max_tokens = max_tokens
        # A pool of its own: its threads wait for the engines' calls, which run in the event loop's
        # pool, so in one common pool they could leave no thread for the calls.
        self._pool = ThreadPoolExecutor(THREADS)
        self.batcher = StepBatcher(self.engines.denoise, type(denoiser).join, rows)

    async def __call__(
        self,
        labels: UInt8,
        crops: Sequence[Sequence[Crop]],
        seeds: Sequence[int],
        options: RequestOptions,
        report: Callable[[int], None],
        wanted: Callable[[], bool],
    ) -> Tensor:
        """Make one image per label map, uint8 (batch, H, W, 3).

        Args:
            labels, crops, seeds: see `HeteroTissuePipeline.__call__`.
            options: the other parameters of the request.
            report: called with the number of finished steps.
            wanted: called before every step; False cancels the request.

        Raises:
            InputError: the request does not fit the model.
            asyncio.CancelledError: the request is no longer wanted.
        """
        self._check(labels, crops, seeds)
        noise = draw_noise(seeds, self._shape).to(self.device)
        solver = Solver(noise, options.steps, options.first_order)
        with self.batcher.in_flight(options.priority_class):
            trajectory = await self._begin(solver, labels, crops, options, wanted)
            trajectory.report = report
            latents = await self.batcher.run(trajectory)
            parts = torch.split(latents, decoded_at_a_time(self.size**2, self.device))
            images = torch.cat([await self._decode(part, options) for part in parts])
            if not (options.use_map and options.use_crops):
                return images
            return await asyncio.get_running_loop().run_in_executor(
                self._pool, match_staining, images, labels, crops, options.staining
            )

    async def velocity(
        self,
        samples: Tensor,
        labels: UInt8,
        crops: Sequence[Sequence[Crop]],
        options: RequestOptions,
        wanted: Callable[[], bool],
    ) -> Tensor:
        """Return the guided velocity of given samples (batch, C, h, w) at the time of a step.

        Args:
            samples: x at the time of `options.at_step`.
            labels, crops: see `HeteroTissuePipeline.__call__`.
            options: the other parameters of the request.
            wanted: see `__call__`.

        Raises:
            InputError: the request does not fit the model.
            asyncio.CancelledError: the request is no longer wanted.
        """
        self._check(labels, crops, range(len(samples)))
        if samples.shape[1:] != self._shape:
            raise InputError(f"samples have shape {self._shape}, not {tuple(samples.shape[1:])}")
        if options.at_step >= options.steps:
            raise InputError(f"at_step is 0 to {options.steps - 1}, not {options.at_step}")
        solver = Solver(samples.to(self.device), options.steps, True, options.at_step)
        with self.batcher.in_flight(options.priority_class):
            trajectory = await self._begin(solver, labels, crops, options, wanted)
            trajectory.last = options.at_step + 1
            await self.batcher.run(trajectory)
        return cast(Tensor, solver.before)

    @property
    def _shape(self) -> tuple[int, int, int]:
        """Shape of an image's latents."""
        side = self.size // int(self.denoiser.config.factor)
        return int(self.denoiser.config.latent_channels), side, side

    def _check(self, labels: UInt8, crops: Sequence[Sequence[Crop]], seeds: Sequence[int]) -> None:
        """Raise `InputError` if a request does not fit the model."""
        check_inputs(labels, crops, seeds, self.denoiser)
        if labels.shape[1:] != (self.size, self.size):
            height, width = labels.shape[1:]
            raise InputError(f"the model makes {self.size} px, not maps of {height}×{width} px")
        settings = self.denoiser.config
        if self.max_tokens is not None:
            sides = [len(crop.pixels) for own in crops for crop in own]
            side = max([*sides, int(settings.crop_side)])
            most = max(len(own) for own in crops)
            check_crops(most, side, int(settings.factor), self.max_tokens)

    async def _begin(
        self,
        solver: Solver,
        labels: UInt8,
        crops: Sequence[Sequence[Crop]],
        options: RequestOptions,
        wanted: Callable[[], bool],
    ) -> Trajectory:
        """Encode the conditions of a request, and return its trajectory."""
        guidance = Guidance.from_scale(options, options.use_map, options.use_crops)
        return Trajectory(
            solver,
            await self._encode(labels, crops, guidance.branches, options.alone),
            guidance,
            priority=options.priority_class,
            alone=options.alone,
            wanted=wanted,
        )

    async def _encode(
        self,
        labels: UInt8,
        crops: Sequence[Sequence[Crop]],
        branches: list[tuple[bool, bool]],
        alone: bool,
    ) -> Tensors:
        """Encode conditions in a thread, while the steps of other requests go on."""
        loop = asyncio.get_running_loop()

        def encode(images: Tensor) -> Tensor:
            # The images of a request may have more crops than the encoder takes at a time.
            answers = [
                asyncio.run_coroutine_threadsafe(_awaited(self.engines.encode(part, alone)), loop)
                for part in torch.split(images, max_rows("vae_encoder", self.size))
            ]
            return torch.cat([answer.result() for answer in answers])

        def work() -> Tensors:
            with computing(self.device, self.precision):
                encoded = self.denoiser.encode_branches(labels, crops, branches, encode)
                return {n: value.float().contiguous() for n, value in encoded.items()}

        return await loop.run_in_executor(self._pool, work)

    async def _decode(self, latents: Tensor, options: RequestOptions) -> Tensor:
        if options.priority_class is Priority.BULK:
            await self.batcher.only_bulk.wait()
        return await self.engines.decode(latents, options.alone)


async def _awaited(answer: Awaitable[Tensor]) -> Tensor:
    return await answer


def unpack_crops(
    pixels: UInt8, labels: NDArray[np.int32], sides: NDArray[np.int32], corners: NDArray[np.int32]
) -> list[list[Crop]]:
    """Turn the tensors of `SAMPLER_INPUTS` into the crops of each image.

    If all images have the same crops, all get the same list, which is encoded once.

    Raises:
        InputError: an image has too many crops, or the side of a crop does not fit `pixels`.
    """
    if pixels.shape[1] > MAX_CROPS:
        raise InputError(f"{pixels.shape[1]} crops of an image are more than {MAX_CROPS}")
    if ((sides < 1) | (sides > pixels.shape[2]))[labels >= 0].any():
        raise InputError(f"crop_sides must be 1 to {pixels.shape[2]}, the side of `crops`")
    given = (pixels, labels, sides, corners)
    alike = len(pixels) > 1 and all((each == each[:1]).all() for each in given)
    found = [
        [
            Crop(int(label), int(x), int(y), image[:side, :side])
            for image, label, side, (x, y) in zip(*own, strict=True)
            if label >= 0
        ]
        for own in zip(*(each[:1] if alike else each for each in given), strict=True)
    ]
    return found * len(pixels) if alike else found


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
    """Return a tensor on any device as an array."""
    array: NDArray[np.generic] = tensor.cpu().numpy()
    return array
