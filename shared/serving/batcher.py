"""In-flight batching: requests join and leave a batch between two denoising steps.

The algorithm:

1. Each request is a `Trajectory`: its images, their present time, encoded conditions, priority.
2. Only one batch runs at a time, and only for one denoising step. Then a new batch is chosen.
3. The oldest trajectory of the highest priority is in the batch. Unless it must stay alone, other
   trajectories of the same latent size join it, by priority and age, up to `max_rows` rows in all.
   A single trajectory of more rows is split.
   Rows of one batch may have different times, because the denoiser takes a time per row.
4. The denoiser predicts all rows; the solver of each trajectory takes its step and reports it.
5. Finished, failed, cancelled and unwanted trajectories leave; the others wait for a next batch.
6. So an interactive request waits for one step of a bulk request, not for its end.
7. While a request above `Priority.BULK` is in flight, no step of bulk requests alone begins,
   because it would compete for the same processor. A request is in flight also while its
   conditions are encoded and its images decoded.
8. If a batch fails, its trajectories are tried again alone, so that only the faulty one fails.
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
from shared.serving.priority import Priority

Denoise = Callable[[Tensor, Tensor, Tensors], Awaitable[Tensor]]
"""Predicts velocities from samples (rows, C, h, w), times (rows,) and encoded conditions."""


@dataclass(eq=False)
class Trajectory:
    """The images of a request between noise and latents.

    Attributes:
        solver: holds the samples and their time.
        encoded: the result of `Denoiser.encode_branches`.
        guidance: the weights of the branches.
        priority: trajectories of a higher priority go first.
        alone: True keeps it in batches of its own, so that its bits depend on no other request.
        last: number of the step after which it ends; None: the solver's last.
        report: called with the number of finished steps.
        wanted: called before each step; False cancels the trajectory.
        ended: future of the latents; it ends with the trajectory.
    """

    solver: Solver
    encoded: Tensors
    guidance: Guidance
    priority: Priority = Priority.BULK
    alone: bool = True
    last: int | None = None
    report: Callable[[int], None] = lambda _: None
    wanted: Callable[[], bool] = lambda: True
    ended: asyncio.Future[Tensor] = field(init=False)

    @property
    def finished(self) -> bool:
        """Whether it has taken its last step."""
        return self.solver.finished or self.solver.done == self.last

    @property
    def weights(self) -> tuple[float, ...]:
        """Weights of the branches that the next step evaluates."""
        return self.guidance.weights_at(self.solver.time)

    @property
    def rows(self) -> int:
        """Number of rows that the next step adds to a batch: images times branches."""
        return len(self.solver.sample) * len(self.weights)


class StepBatcher:
    """Denoises many trajectories in shared batches.

    Args:
        denoise: calls the denoiser for one batch.
        join: joins encoded conditions, see `Denoiser.join`.
        max_rows: rows of the largest batch; a single trajectory of more rows is split.

    Attributes:
        only_bulk: event that is set while no request above `Priority.BULK` is in flight.
    """

    def __init__(
        self, denoise: Denoise, join: Callable[[Sequence[Tensors]], Tensors], max_rows: int
    ) -> None:
        self._denoise = denoise
        self._join = join
        self._max_rows = max_rows
        self._waiting: list[Trajectory] = []
        self._loop: asyncio.Task[None] | None = None
        self._above_bulk = 0
        self.only_bulk = asyncio.Event()
        self.only_bulk.set()

    @contextmanager
    def in_flight(self, priority: Priority) -> Iterator[None]:
        """Count a request as in flight in this context; above `BULK` it holds back bulk steps."""
        if priority is Priority.BULK:
            yield
            return
        self._above_bulk += 1
        self.only_bulk.clear()
        try:
            yield
        finally:
            self._above_bulk -= 1
            if not self._above_bulk:
                self.only_bulk.set()
                self._start_loop()

    async def run(self, trajectory: Trajectory) -> Tensor:
        """Denoise a trajectory to its end and return its latents.

        If the call is cancelled, the trajectory leaves before the next step.

        Raises:
            asyncio.CancelledError: the trajectory is no longer wanted.
            Exception: an error of the denoiser, of `report` or of `wanted`.
        """
        trajectory.ended = asyncio.get_running_loop().create_future()
        self._waiting.append(trajectory)
        self._start_loop()
        try:
            return await trajectory.ended
        finally:
            self._leave(trajectory)

    def _start_loop(self) -> None:
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._steps())

    async def _steps(self) -> None:
        while self._waiting and self._may_step():
            batch = [each for each in self._choose() if self._is_wanted(each)]
            if not batch:
                continue
            try:
                velocities = await self._predict(batch)
            except Exception as error:
                if len(batch) == 1:
                    self._fail(batch[0], error)
                for each in batch:  # try each alone, because one of them may be faulty
                    each.alone = True
                continue
            for each, velocity in zip(batch, velocities, strict=True):
                self._advance(each, velocity)

    def _may_step(self) -> bool:
        """Whether a step may begin; bulk steps wait for requests of a higher priority."""
        return self.only_bulk.is_set() or any(each.priority for each in self._waiting)

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
        """Choose the oldest trajectory of the highest priority, and others that fit its batch."""
        first = min(self._waiting, key=lambda each: -each.priority)
        batch, rows = [first], first.rows
        if first.alone:
            return batch
        for other in sorted(self._waiting, key=lambda each: -each.priority):
            fits = rows + other.rows <= self._max_rows
            alike = other.solver.sample.shape[1:] == first.solver.sample.shape[1:]
            if other is not first and not other.alone and fits and alike:
                batch.append(other)
                rows += other.rows
        return batch

    async def _predict(self, batch: Sequence[Trajectory]) -> list[Tensor]:
        """Predict the velocity of each trajectory, (images, C, h, w)."""
        samples = [each.solver.sample.repeat(len(each.weights), 1, 1, 1) for each in batch]
        times = [torch.full((each.rows,), each.solver.time) for each in batch]
        encoded = self._join([Denoiser.first(each.encoded, each.rows) for each in batch])
        now = torch.cat(times).to(samples[0].device)
        rows = await self._denoise_in_parts(torch.cat(samples), now, encoded)
        parts = torch.split(rows, [each.rows for each in batch])
        return [combine(part, each.weights) for each, part in zip(batch, parts, strict=True)]

    async def _denoise_in_parts(self, samples: Tensor, times: Tensor, encoded: Tensors) -> Tensor:
        """Call the denoiser for at most `max_rows` rows at a time."""
        most = self._max_rows
        answers = [
            await self._denoise(
                samples[start : start + most],
                times[start : start + most],
                {name: value[start : start + most] for name, value in encoded.items()},
            )
            for start in range(0, len(samples), most)
        ]
        return torch.cat(answers) if len(answers) > 1 else answers[0]

    def _advance(self, trajectory: Trajectory, velocity: Tensor) -> None:
        if trajectory.ended.done():  # cancelled during the step
            return
        try:
            trajectory.solver.advance(velocity)
            trajectory.report(trajectory.solver.done)
        except Exception as error:
            self._fail(trajectory, error)
        if trajectory.finished and not trajectory.ended.done():
            self._leave(trajectory)
            trajectory.ended.set_result(trajectory.solver.sample)
