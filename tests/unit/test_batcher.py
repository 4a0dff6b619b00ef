"""In-flight batching: who shares a batch with whom, and what stays apart."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from torch import Tensor

from shared.diffusion.denoiser import Denoiser, Tensors
from shared.diffusion.flow import Solver
from shared.diffusion.guidance import Guidance
from shared.serving.batcher import StepBatcher, Trajectory
from shared.serving.priority import Priority

PLAIN = Guidance.of(1, 1)


class Recorder:
    """A denoiser that notes the times of every batch; its velocity is x · scale · t."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.fails = False

    async def __call__(self, sample: Tensor, times: Tensor, encoded: Tensors) -> Tensor:
        self.batches.append(times.tolist())
        await asyncio.sleep(0)
        if self.fails:
            raise RuntimeError("out of memory")
        return sample * (encoded["scale"] * times).view(-1, 1, 1, 1)


def trajectory(
    rows: int = 1, steps: int = 4, scale: float = 1.0, guidance: Guidance = PLAIN,
    **options: Any,
) -> Trajectory:  # fmt: skip
    noise = torch.arange(rows * 4.0).view(rows, 1, 2, 2) + 1
    condition = {"scale": torch.full((rows * len(guidance.branches),), scale)}
    return Trajectory(Solver(noise, steps), condition, guidance, **options)


def gather(denoise: Recorder, most: int, *trajectories: Trajectory) -> list[Tensor]:
    async def all_of_them() -> list[Tensor]:
        batcher = StepBatcher(denoise, Denoiser.join, most)
        return list(await asyncio.gather(*(batcher.run(each) for each in trajectories)))

    return asyncio.run(all_of_them())


def test_requests_at_different_steps_share_a_batch_and_get_what_they_would_alone() -> None:
    kinds = [
        {"steps": 2},
        {"steps": 5, "scale": 0.5},
        {"rows": 2, "guidance": Guidance.of(1.5, 1.5, low=0.3)},
    ]
    together = Recorder()
    made = gather(together, 8, *(trajectory(**kind, alone=False) for kind in kinds))  # type: ignore[arg-type]
    single = [gather(Recorder(), 8, trajectory(**kind))[0] for kind in kinds]  # type: ignore[arg-type]
    assert all(torch.allclose(one, other) for one, other in zip(made, single, strict=True))
    assert together.batches[1] == pytest.approx([0.5, 0.8, 0.75, 0.75, 0.75, 0.75])
    assert [len(batch) for batch in together.batches] == [6, 6, 5, 3, 1]


def test_a_trajectory_that_stays_alone_shares_no_batch() -> None:
    denoise = Recorder()
    gather(denoise, 8, trajectory(rows=3), trajectory(rows=2, alone=False))
    assert {len(batch) for batch in denoise.batches} == {2, 3}


def test_batches_stay_below_the_limit_and_a_larger_request_is_split() -> None:
    denoise = Recorder()
    made = gather(denoise, 4, *(trajectory(rows=rows, alone=False) for rows in (3, 2, 1, 6)))
    assert {len(batch) for batch in denoise.batches} == {4, 2}
    (whole,) = gather(Recorder(), 8, trajectory(rows=6))
    assert torch.equal(made[-1], whole)


def test_an_urgent_request_waits_for_one_step_and_not_for_the_end() -> None:
    denoise = Recorder()

    async def join_late() -> None:
        batcher = StepBatcher(denoise, Denoiser.join, 8)
        bulk = asyncio.create_task(batcher.run(trajectory(rows=4, steps=50)))
        while len(denoise.batches) < 3:
            await asyncio.sleep(0)
        await batcher.run(trajectory(steps=5, priority=Priority.INTERACTIVE))
        assert not bulk.done()
        assert len(denoise.batches) <= 3 + 1 + 5
        await bulk

    asyncio.run(join_late())
    assert len(denoise.batches) == 55


def test_no_other_step_begins_while_an_urgent_request_is_in_flight() -> None:
    denoise = Recorder()

    async def idle() -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def interrupt() -> None:
        batcher = StepBatcher(denoise, Denoiser.join, 8)
        bulk = asyncio.create_task(batcher.run(trajectory(steps=50)))
        while len(denoise.batches) < 3:
            await asyncio.sleep(0)
        with batcher.in_flight(Priority.INTERACTIVE), batcher.in_flight(Priority.INTERACTIVE):
            await idle()
            encoding = len(denoise.batches)
            assert encoding <= 3 + 1
            await batcher.run(trajectory(steps=5, priority=Priority.INTERACTIVE))
            await idle()  # decoding
            assert len(denoise.batches) == encoding + 5
        assert (await bulk).shape[0] == 1

    asyncio.run(interrupt())
    assert len(denoise.batches) == 55


def test_a_cancelled_request_costs_no_further_step() -> None:
    denoise = Recorder()

    async def give_up() -> None:
        batcher = StepBatcher(denoise, Denoiser.join, 8)
        task = asyncio.create_task(batcher.run(trajectory(steps=1000)))
        while len(denoise.batches) < 3:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        before = len(denoise.batches)
        await batcher.run(trajectory(steps=2))
        assert len(denoise.batches) <= before + 3

    asyncio.run(give_up())


def test_a_failing_step_is_told_to_those_in_it_and_the_batcher_goes_on() -> None:
    denoise = Recorder()

    async def fail_once() -> None:
        batcher = StepBatcher(denoise, Denoiser.join, 8)
        denoise.fails = True
        with pytest.raises(RuntimeError, match="out of memory"):
            await batcher.run(trajectory())
        denoise.fails = False
        await batcher.run(trajectory(steps=2))

    asyncio.run(fail_once())


def test_a_failing_request_fails_none_of_those_that_shared_its_batch() -> None:
    denoise = Recorder()

    async def step(sample: Tensor, times: Tensor, encoded: Tensors) -> Tensor:
        if (encoded["scale"] == 13).any():
            raise RuntimeError("a poisoned row")
        return await denoise(sample, times, encoded)

    def hung_up(step: int) -> None:
        raise ConnectionError("nobody listens")

    async def together() -> list[Any]:
        batcher = StepBatcher(step, Denoiser.join, 8)
        runs = (
            batcher.run(each)
            for each in (
                trajectory(alone=False, scale=13),
                trajectory(alone=False, report=hung_up),
                trajectory(alone=False),
            )
        )
        return await asyncio.gather(*runs, return_exceptions=True)

    poisoned, silent, made = asyncio.run(together())
    assert "poisoned" in str(poisoned)
    assert "nobody listens" in str(silent)
    assert torch.allclose(made, gather(Recorder(), 8, trajectory())[0])


def test_giving_up_at_the_last_step_fails_no_other_request() -> None:
    async def together() -> list[Any]:
        batcher = StepBatcher(Recorder(), Denoiser.join, 8)
        tasks: list[asyncio.Task[Tensor]] = []

        def give_up(step: int) -> None:
            if step == 4:
                tasks[0].cancel()

        for options in ({"report": give_up}, {}):
            run = batcher.run(trajectory(alone=False, **options))
            tasks.append(asyncio.create_task(run))
        return await asyncio.gather(*tasks, return_exceptions=True)

    given_up, made = asyncio.run(together())
    assert isinstance(given_up, asyncio.CancelledError)
    assert isinstance(made, Tensor)


def test_a_request_that_nobody_wants_any_more_costs_no_step_at_all() -> None:
    denoise = Recorder()

    async def wait_behind_another() -> None:
        batcher = StepBatcher(denoise, Denoiser.join, 8)
        bulk = asyncio.create_task(batcher.run(trajectory(rows=3, steps=5)))
        await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await batcher.run(trajectory(rows=2, wanted=lambda: False))
        await bulk

    asyncio.run(wait_behind_another())
    assert [len(batch) for batch in denoise.batches] == [3] * 5
