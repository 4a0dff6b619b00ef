"""Sampled layouts of fields: label maps of any size, by a layout model that sees windows of them.

As in `fields`, each step has another grid of windows, and the velocities of windows that overlap
are averaged. The coarse grid of the whole field is in memory; the label map is enlarged from it in
blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from diffusers import UNet2DModel
from torch import Tensor

from shared.arrays import UInt8
from shared.diffusion.denoiser import Tensors
from shared.diffusion.flow import Solver, draw_noise
from shared.diffusion.layouts import STEPS, to_labels, velocity
from shared.diffusion.windows import BATCH, GOLDEN, window_starts, window_weights
from shared.errors import InputError
from shared.imaging.label_map import LABEL_TILE

OVERLAP = 1 / 8
"""Overlap of neighbouring windows / their side. Without any, a model that is sure of its maps shows
where windows met."""

MAX_VALUES = 2**28
"""Greatest number of cells · labels; sampling holds six float32 of each, 6 GiB."""

REACH = 2
"""Cells around a pixel that enlarging looks at."""


class LayoutField:
    """A label map to be sampled, on a grid whose cells are as large as those of single maps.

    Args:
        model: the layout model.
        shares: share of each label in the map, label 0 first, with sum 1. The map shows no label
            of share 0, and nearly the asked shares of the others.
        width, height: size of the map, pixels, at least `size`.
        size: side of the maps that the model was trained on, pixels.

    Raises:
        InputError: the grid does not fit into memory.
    """

    def __init__(
        self, model: UNet2DModel, shares: Sequence[float], width: int, height: int, size: int
    ) -> None:
        self.model, self.size = model, size
        self.width, self.height = width, height
        self.asked = torch.tensor([shares], dtype=torch.float32, device=model.device)
        self.side = int(model.config["sample_size"])
        self._unit = self.side // math.gcd(self.side, size)  # its border is one of pixels, too
        self.shape = (len(shares), self._cells(height), self._cells(width))
        if math.prod(self.shape) > MAX_VALUES:
            most = MAX_VALUES // len(shares) * size**2 // self.side**2
            raise InputError(
                f"a sampled label map of {width}×{height} px has too many cells for the memory: "
                f"ask for at most {most // 10**6:,} million pixels"
            )

    @torch.inference_mode()
    def sample(
        self,
        seed: int,
        watch: Callable[[int, int], None] = lambda done, total: None,
        begun: Tensors | None = None,
        keep: Callable[[Tensors], None] = lambda state: None,
    ) -> Tensor:
        """Sample the grid, float32 (labels, rows, columns).

        Args:
            seed: of the noise.
            watch: called before every batch of windows, with how many steps are done, and of how
                many; it may raise to stop.
            begun: a state that `keep` was given, to go on from; None: begin.
            keep: called after every step but the last, with a state.
        """
        if begun is None:
            solver = Solver(draw_noise([seed], self.shape)[0].to(self.model.device), STEPS)
        else:
            sample, before = (begun[name].to(self.model.device) for name in ("sample", "before"))
            solver = Solver(sample, STEPS, done=int(begun["done"]), before=before)
        while not solver.finished:
            before = self._velocity(solver, lambda: watch(solver.done, STEPS))
            solver.advance(before)
            if not solver.finished:
                done = torch.tensor(solver.done)
                keep({"sample": solver.sample, "before": before, "done": done})
        return solver.sample

    def strips(self, grid: Tensor) -> Iterator[UInt8]:
        """Enlarge a grid to the label map, in strips of `LABEL_TILE` rows, uint8 (rows, width)."""
        for top in range(0, self.height, LABEL_TILE):
            bottom = min(top + LABEL_TILE, self.height)
            blocks = [
                self._block(grid, (top, bottom), (left, min(left + LABEL_TILE, self.width)))
                for left in range(0, self.width, LABEL_TILE)
            ]
            yield np.concatenate(blocks, 1)

    def starts(self, step: int, axis: int) -> list[int]:
        """Return where the windows of a step begin along an axis (0: rows), cells."""
        stride = self.side - round(self.side * OVERLAP)
        shift = round((step + 1) * GOLDEN * stride)
        return window_starts(self.shape[1 + axis], self.side, stride, shift)

    def _cells(self, pixels: int) -> int:
        """Return the number of cells that cover some pixels, a multiple of the unit."""
        return max(self.side, -(-pixels * self.side // (self.size * self._unit)) * self._unit)

    def _velocity(self, solver: Solver, watch: Callable[[], None]) -> Tensor:
        """Return the velocity at the solver's time, averaged where windows overlap."""
        grid, side = solver.sample, self.side
        rows, columns = (self.starts(solver.done, axis) for axis in (0, 1))
        places = [np.s_[:, y : y + side, x : x + side] for y in rows for x in columns]
        weights = window_weights(side).to(grid.device)
        total, weight = torch.zeros_like(grid), torch.zeros_like(grid[:1])
        for first in range(0, len(places), BATCH):
            watch()
            batch = places[first : first + BATCH]
            times = torch.full((len(batch),), solver.time, device=grid.device)
            windows = torch.stack([grid[place] for place in batch])
            found = velocity(self.model, windows, times, self.asked.expand(len(batch), -1))
            for place, own in zip(batch, found, strict=True):
                total[place] += own * weights
                weight[place] += weights
        return total.div_(weight)

    def _block(self, grid: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> UInt8:
        """Enlarge the cells around a block of pixels, and cut the block out."""
        spans = [self._span(*rows, grid.shape[1]), self._span(*columns, grid.shape[2])]
        cells = grid[None, :, slice(*spans[0]), slice(*spans[1])]
        height, width = (self._pixels(last - first) for first, last in spans)
        labels = to_labels(cells, (height, width), self.asked > 0)[0]
        top, left = (self._pixels(first) for first, _ in spans)
        block: UInt8 = labels[rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]
        return block

    def _span(self, start: int, stop: int, most: int) -> tuple[int, int]:
        """Return the cells that some pixels are enlarged from, in whole units."""
        first = max(0, start * self.side // self.size - REACH) // self._unit * self._unit
        last = -(-(-(-stop * self.side // self.size) + REACH) // self._unit) * self._unit
        return first, min(last, most)

    def _pixels(self, cells: int) -> int:
        return cells * self.size // self.side
