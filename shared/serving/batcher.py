"""In-flight batching: requests join and leave between denoising steps.

One step of one batch runs at a time. Between two steps the next batch is chosen anew:
the most urgent trajectory, and with it others that may share its batch, each at its
own time. An urgent request so waits for one step of a bulk request and not for its end. No other
step begins while its conditions are encoded or its images decoded: it would take their
processor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shared.diffusion.denoiser import Denoiser, Tensors
from shared.diffusion.flow import Solver, combine
from shared.diffusion.guidance import Guidance

Denoise = Callable[[Tensor, Tensor, Tensors], Awaitable[Tensor]]
"""Samples (rows, C, h, w), times (rows,) and encoded conditions to velocities."""


@dataclass(eq=False)
class Trajectory:
    """Images on their way from noise to latents.

    Attributes:
        solver: where they are.
        encoded: see `Denoiser.encode_branches`.
        guidance: weights of the branches.
        urgent: goes before all that are not.
        alone: keeps a batch of its own, so that its bits depend on nothing else.
        report: called with the number of steps done.
        wanted: asked before every step; False cancels it.
    """

    solver: Solver
    encoded: Tensors
    guidance: Guidance
    urgent: bool = False
    alone: bool = True
    report: Callable[[int], None] = lambda _: None
    wanted: Callable[[], bool] = lambda: True
    ended: asyncio.Future[Tensor] = field(init=False)

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the branches that its next step asks."""
        return self.guidance.at(self.solver.time)

    @property
    def rows(self) -> int:
        """Rows of a batch that its next step takes: images times branches."""
        return len(self.solver.sample) * len(self.weights)


class StepBatcher:
    """Runs trajectories on a denoiser.

    Args:
        denoise: one call of the denoiser.
        join: joins encoded conditions, see `Denoiser.join`.
        most: rows of a batch at most, but for a single trajectory that has more.

    Attributes:
        calm: set while no urgent request is in flight.
    """

    def __init__(
        self, denoise: Denoise, join: Callable[[Sequence[Tensors]], Tensors], most: int
    ) -> None:
        self._denoise = denoise
        self._join = join
        self._most = most
        self._waiting: list[Trajectory] = []
        self._loop: asyncio.Task[None] | None = None
        self._urgent = 0
        self.calm = asyncio.Event()
        self.calm.set()

    @contextmanager
    def in_flight(self, urgent: bool) -> Iterator[None]:
        """Have a request in flight, until its answer; an urgent one keeps others' steps waiting."""
        if not urgent:
            yield
            return
        self._urgent += 1
        self.calm.clear()
        try:
            yield
        finally:
            self._urgent -= 1
            if not self._urgent:
                self.calm.set()
                self._go_on()

    async def run(self, trajectory: Trajectory) -> Tensor:
        """Denoise a trajectory to its end and return its latents.

        Cancelling the call takes the trajectory out before the next step.

        Raises:
            asyncio.CancelledError: it is no longer wanted.
            Exception: what the denoiser, `report` or `wanted` raised.
        """
        trajectory.ended = asyncio.get_running_loop().create_future()
        self._waiting.append(trajectory)
        self._go_on()
        try:
            return await trajectory.ended
        finally:
            self._leave(trajectory)

    def _go_on(self) -> None:
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._steps())

    async def _steps(self) -> None:
        while self._waiting and (self.calm.is_set() or any(e.urgent for e in self._waiting)):
            batch = [each for each in self._choose() if self._is_wanted(each)]
            if not batch:
                continue
            try:
                velocities = await self._ask(batch)
            except Exception as error:
                if len(batch) == 1:
                    self._fail(batch[0], error)
                for each in batch:  # one of them may be to blame: the others go on without it
                    each.alone = True
                continue
            for each, velocity in zip(batch, velocities, strict=True):
                self._advance(each, velocity)

    def _is_wanted(self, trajectory: Trajectory) -> bool:
        try:
            if not trajectory.wanted():
                trajectory.ended.cancel()
        except Exception as error:
            self._fail(trajectory, error)
        if trajectory.ended.done():
            self._leave(trajectory)
        return not trajectory.ended.done()

    def _fail(self, trajectory: Trajectory, error: Exception) -> None:
        self._leave(trajectory)
        if not trajectory.ended.done():
            trajectory.ended.set_exception(error)

    def _leave(self, trajectory: Trajectory) -> None:
        if trajectory in self._waiting:
            self._waiting.remove(trajectory)

    def _choose(self) -> list[Trajectory]:
        """The first of the most urgent, and whoever may share its batch and fits in."""
        first = min(self._waiting, key=lambda each: not each.urgent)
        batch, rows = [first], first.rows
        if first.alone:
            return batch
        for other in sorted(self._waiting, key=lambda each: not each.urgent):
            fits = rows + other.rows <= self._most
            alike = other.solver.sample.shape[1:] == first.solver.sample.shape[1:]
            if other is not first and not other.alone and fits and alike:
                batch.append(other)
                rows += other.rows
        return batch

    async def _ask(self, batch: Sequence[Trajectory]) -> list[Tensor]:
        """Ask the denoiser for the velocity of each, (images, C, h, w)."""
        samples = [each.solver.sample.repeat(len(each.weights), 1, 1, 1) for each in batch]
        times = [torch.full((each.rows,), each.solver.time) for each in batch]
        encoded = self._join([Denoiser.first(each.encoded, each.rows) for each in batch])
        now = torch.cat(times).to(samples[0].device)
        rows = await self._denoise(torch.cat(samples), now, encoded)
        parts = torch.split(rows, [each.rows for each in batch])
        return [combine(part, each.weights) for each, part in zip(batch, parts, strict=True)]

    def _advance(self, trajectory: Trajectory, velocity: Tensor) -> None:
        if trajectory.ended.done():  # cancelled meanwhile
            return
        try:
            trajectory.solver.advance(velocity)
            trajectory.report(trajectory.solver.done)
        except Exception as error:
            self._fail(trajectory, error)
        if trajectory.solver.finished and not trajectory.ended.done():
            self._leave(trajectory)
            trajectory.ended.set_result(trajectory.solver.sample)
