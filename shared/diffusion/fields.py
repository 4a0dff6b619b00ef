"""Fields: one image of any size from a label map and appearances, with a crop of each class.

The denoiser sees windows of its own size. Each step has another grid of them, so that no border is
at the same place twice. In the last two steps, after which little changes, they overlap, and their
velocities are averaged with weights that fall towards the borders. Grids, noise and batches
follow from the seed and the place in the field alone. So the latents of a strip of rows are the
same to the bit, whichever strips the field is cut into.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from shared.arrays import Float32, UInt8
from shared.contracts.sampling import Sampling
from shared.diffusion import schedule
from shared.diffusion.appearances import Appearance, nearness
from shared.diffusion.autoencoder import encode_latents, vae_factor
from shared.diffusion.crops import Crop, move_crop
from shared.diffusion.flow import Solver, Velocity, draw_noise, guided, sample_flow
from shared.diffusion.guidance import Guidance
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.diffusion.precision import autocast
from shared.diffusion.windows import BATCH, GOLDEN, even_batches, window_starts, window_weights
from shared.errors import InputError
from shared.seeds import image_seed

NOISE_TILE = 32
"""Side of the pieces of noise that have a seed each, latent pixels."""


@dataclass(frozen=True)
class FieldMap:
    """The label map of a field, which is read by rows.

    Attributes:
        height, width: size in pixels.
        read: returns the rows from `top` to before `bottom`, uint8 (rows, width).
    """

    height: int
    width: int
    read: Callable[[int, int], UInt8]

    @classmethod
    def of(cls, labels: UInt8) -> FieldMap:
        """Return the map of an array, uint8 (height, width)."""
        return cls(labels.shape[0], labels.shape[1], lambda top, bottom: labels[top:bottom])


@dataclass(frozen=True)
class Strip:
    """Rows of a field's latents between two steps.

    Attributes:
        top: number of the first row, latent pixels.
        sample: x at the present time, float32 (C, rows, width).
        before: velocity of the step before, of the same shape; None: none is needed.
    """

    top: int
    sample: Tensor
    before: Tensor | None = None

    @property
    def bottom(self) -> int:
        """Number of the row after the last."""
        return self.top + self.sample.shape[1]

    def rows(self, top: int, bottom: int) -> Strip:
        """Return a part of the strip."""
        part = slice(top - self.top, bottom - self.top)
        before = None if self.before is None else self.before[:, part]
        return Strip(top, self.sample[:, part], before)


class WindowServer(Protocol):
    """Computes velocities of windows in another process, such as `TritonGenerator`."""

    def velocity(
        self,
        samples: Float32,
        step: int,
        labels: UInt8,
        crops: Sequence[Sequence[Crop]],
        sampling: Sampling,
    ) -> Float32:
        """Return the guided velocity of samples (B, C, h, w) at the time of a step."""


def join(strips: Sequence[Strip]) -> Strip:
    """Join strips that follow each other from top to bottom."""
    before = [strip.before for strip in strips if strip.before is not None]
    return Strip(
        strips[0].top,
        torch.cat([strip.sample for strip in strips], 1),
        torch.cat(before, 1) if before else None,
    )


class FieldSampler:
    """Makes the latents of a field.

    Args:
        pipeline: the model.
        size: side of the model's images, pixels.
        sampling: steps and guidance.
        labels: the label map, in the model's classes.
        appearances: at least one; all have crops of the same classes.
        seed: of the noise and of the grids of windows.
        precision: 'fp32' or 'bf16', see `HeteroTissuePipeline.__call__`.
        server: computes the velocities of windows elsewhere; None: the pipeline does.

    Attributes:
        device: device of the model.
        factor: pixels per latent pixel.
        window: side of a window, latent pixels.
        height, width: size of the field, latent pixels.
        watch: called before every batch of windows, and before every piece that is decoded, with
            how many rows are done, and of how many; it may raise to stop.

    Raises:
        InputError: the map is smaller than a window.
    """

    overlaps: ClassVar[tuple[float, ...]] = (1 / 8, 3 / 16)
    """Overlap of neighbouring windows / their side, in the last steps. Without any, lines run along
    the borders of these steps, which no later step smooths (`benchmarks/fields.py`)."""

    def __init__(
        self,
        pipeline: HeteroTissuePipeline,
        size: int,
        sampling: Sampling,
        labels: FieldMap,
        appearances: Sequence[Appearance],
        seed: int,
        precision: str = "fp32",
        server: WindowServer | None = None,
    ) -> None:
        if min(labels.height, labels.width) < size:
            raise InputError(
                f"the label map is {labels.width}×{labels.height} px, smaller than the images of "
                f"the model: give at least {size}×{size} px"
            )
        self.pipeline, self.sampling, self.labels = pipeline, sampling, labels
        self.appearances = appearances
        self.seed, self.precision, self.device = seed, precision, pipeline.device
        self.factor = vae_factor(pipeline.vae)
        self.window = size // self.factor
        self.height, self.width = (
            -(-side // self.factor) for side in (labels.height, labels.width)
        )
        self._server = server
        self._guidance = Guidance.from_scale(sampling, True, bool(appearances[0].crops))
        self._encoded: dict[bytes, Tensor] = {}
        self.watch: Callable[[int, int], None] = lambda done, total: None
        self._weights = window_weights(self.window)

    def label_rows(self, top: int, bottom: int) -> UInt8:
        """Read rows of latent pixels from the label map, which is extended at its far edges."""
        bottom = min(bottom, self.height)
        rows = self.labels.read(top * self.factor, min(bottom * self.factor, self.labels.height))
        missing = (
            (bottom - top) * self.factor - len(rows),
            self.width * self.factor - rows.shape[1],
        )
        return np.pad(rows, ((0, missing[0]), (0, missing[1])), mode="edge")

    def noise(self, top: int, bottom: int) -> Strip:
        """Draw rows of the noise of the field."""
        channels, side = int(self.pipeline.vae.config.latent_channels), NOISE_TILE
        parts = []
        for row in range(top // side, -(-bottom // side)):
            seeds = [
                image_seed(image_seed(self.seed, row), column)
                for column in range(-(-self.width // side))
            ]
            tiles = draw_noise(seeds, (channels, side, side))
            parts.append(torch.cat(list(tiles), 2))
        first = top // side * side
        drawn = torch.cat(parts, 1)[:, top - first : bottom - first, : self.width]
        return Strip(top, drawn.contiguous())

    def reach(self, step: int, top: int, bottom: int) -> tuple[int, int]:
        """Return the rows that a step reads to make the rows from `top` to before `bottom`."""
        rows = self._rows(step, top, bottom)
        return rows[0], rows[-1] + self.window

    def span(self, step: int, top: int, bottom: int) -> tuple[int, int]:
        """Return the rows that a step makes for a strip from `top` to before `bottom`.

        They begin and end at a border of windows, where these do not overlap, so that no window is
        computed for two strips. The spans of strips that follow each other do so, too.
        """
        overlaps = self._overlap(step) > 0
        first, last = (
            row if overlaps or row in (0, self.height) else self._next_start(step, row)
            for row in (top, bottom)
        )
        return first, last

    def advance(self, step: int, given: Strip, top: int, bottom: int) -> Strip:
        """Take one step.

        Args:
            step: number of the step, from 0.
            given: the latents before it, at least the rows of `reach`.
            top, bottom: the rows to make.
        """
        own = given.rows(top, bottom)
        sampling = self.sampling
        solver = Solver(own.sample, sampling.steps, sampling.first_order, step, own.before)
        solver.advance(self.velocity(step, solver.time, given, top, bottom))
        before = None if sampling.first_order else solver.before
        return Strip(top, solver.sample, before)

    @torch.inference_mode()
    def windows(self, places: Sequence[tuple[int, int]], appearance: Appearance) -> Tensor:
        """Make windows of the field that know nothing of each other, (n, C, window, window).

        Args:
            places: row and column of their upper left corners, latent pixels.
            appearance: the appearance of all of them.
        """
        side = self.window
        samples = torch.stack(
            [self.noise(y, y + side).sample[:, :, x : x + side] for y, x in places]
        )
        maps = np.stack([self.window_labels(y, x) for y, x in places])
        made = []
        for first in range(0, len(places), BATCH):
            batch = slice(first, first + BATCH)
            with self.computing():
                velocity = self._guided(maps[batch], places[batch], appearance)
                made.append(
                    sample_flow(
                        velocity, samples[batch].to(self.device), self.sampling.steps,
                        first_order=self.sampling.first_order,
                    )
                )  # fmt: skip
        return torch.cat(made)

    def window_labels(self, y: int, x: int) -> UInt8:
        """Read the labels of the window whose upper left latent pixel is at row y, column x."""
        side, factor = self.window, self.factor
        return self.label_rows(y, y + side)[:, x * factor : (x + side) * factor]

    def _overlap(self, step: int) -> float:
        number = step - self.sampling.steps + len(self.overlaps)
        return self.overlaps[number] if number >= 0 else 0.0

    def _next_start(self, step: int, row: int) -> int:
        starts = self.starts(step, 0, self.height)
        return min((y for y in starts if y >= row), default=self.height)

    def _rows(self, step: int, top: int, bottom: int) -> list[int]:
        starts = self.starts(step, 0, self.height)
        return [y for y in starts if y < bottom and y + self.window > top]

    def starts(self, step: int, axis: int, length: int) -> list[int]:
        """Return where the windows of a step begin along an axis (0: rows)."""
        stride = self.window - round(self.window * self._overlap(step))
        shift = image_seed(self.seed, axis) + round((step + 1) * GOLDEN * stride)
        return window_starts(length, self.window, stride, shift)

    @torch.inference_mode()
    def velocity(self, step: int, time: float, given: Strip, top: int, bottom: int) -> Tensor:
        """Return the velocity of some rows at a time t, on the grid of a step; see `advance`."""
        channels, side, factor = len(given.sample), self.window, self.factor
        total = torch.zeros(channels, bottom - top, self.width)
        weight = torch.zeros(bottom - top, self.width)
        columns = self.starts(step, 1, self.width)
        starts = self._rows(step, top, bottom)
        for y in starts:
            labels = self.label_rows(y, y + side)
            rows = given.rows(y, y + side).sample
            inner = slice(max(top, y) - y, min(bottom, y + side) - y)
            outer = slice(y + inner.start - top, y + inner.stop - top)
            for batch in even_batches(columns):
                self.watch(starts.index(y), len(starts))
                samples = torch.stack([rows[:, :, x : x + side] for x in batch])
                maps = np.stack([labels[:, x * factor : (x + side) * factor] for x in batch])
                velocities = self._mixed(samples, time, maps, [(y, x) for x in batch])
                for x, own in zip(batch, velocities, strict=True):
                    place = (outer, slice(x, x + side))
                    total[:, *place] += own[:, inner] * self._weights[inner]
                    weight[place] += self._weights[inner]
        return total / weight

    def shares(self, ys: Tensor, xs: Tensor) -> Tensor:
        """Return the share of each appearance at some places, in latent pixels; see `nearness`."""
        return nearness(self.appearances, self.height, self.width, ys, xs)

    def _mixed(
        self, samples: Tensor, time: float, maps: UInt8, places: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Return the velocity of windows, mixed of those of the appearances near them."""
        offsets = torch.arange(self.window) + 0.5
        shares = torch.stack([self.shares(y + offsets, x + offsets) for y, x in places])
        total = torch.zeros(samples.shape)
        for number, appearance in enumerate(self.appearances):
            share = shares[:, number].unsqueeze(1)
            seen = share.flatten(1).any(1).nonzero().flatten().tolist()
            if not seen:
                continue
            with self.computing():
                velocity = self._guided(maps[seen], [places[n] for n in seen], appearance)
                own = velocity(samples[seen].to(self.device), time)
            total[seen] += share[seen] * own.cpu()
        return total

    def _guided(
        self, maps: UInt8, places: Sequence[tuple[int, int]], appearance: Appearance
    ) -> Velocity:
        """Return the guided velocity of windows at some places, given their labels."""
        denoiser, branches = self.pipeline.denoiser, self._guidance.branches
        crops = [list(appearance.crops.values())] * len(maps)  # one list, which is encoded once
        if denoiser.places_crops or not all(use_map for use_map, _ in branches):
            crops = [
                self._place(own, *at, appearance) for own, at in zip(maps, places, strict=True)
            ]
        if self._server is not None:
            return self._served(self._server, maps, crops)
        encoded = denoiser.encode_branches(maps, crops, branches, self._encode)
        return guided(denoiser, encoded, self._guidance)

    def _served(
        self, server: WindowServer, maps: UInt8, crops: Sequence[Sequence[Crop]]
    ) -> Velocity:
        times = schedule.times(self.sampling.steps)

        def velocity(samples: Tensor, time: float) -> Tensor:
            given = np.asarray(samples.cpu(), np.float32)
            step = times.index(time)
            found = server.velocity(given, step, maps, crops, self.sampling)
            return torch.from_numpy(np.array(found)).to(self.device)

        return velocity

    def _place(self, labels: UInt8, y: int, x: int, appearance: Appearance) -> list[Crop]:
        """Place the crop of each class in the labels of a window."""
        rng = np.random.default_rng(image_seed(image_seed(self.seed, y), x))
        own = appearance.crops
        known = [own[n] for n in np.unique(labels).tolist() if n in own]
        return [placed for crop in known if (placed := move_crop(crop, labels, rng)) is not None]

    def _encode(self, images: Tensor) -> Tensor:
        """Encode crops, each of them once for the whole field."""
        return torch.cat([self._encode_one(image) for image in torch.split(images, 1)])

    def _encode_one(self, image: Tensor) -> Tensor:
        key = image.cpu().numpy().tobytes()
        if key not in self._encoded:
            self._encoded[key] = encode_latents(self.pipeline.vae, image)
        return self._encoded[key]

    def computing(self) -> torch.autocast:
        """Return a context that computes in the sampler's precision."""
        wanted = self.precision if self.pipeline.vae.dtype == torch.float32 else "fp32"
        return autocast(self.device.type, wanted)
