"""Flow matching: the training objective, and sampling as pure functions.

x_t = (1 - t) x0 + t ε and v = ε - x0 (Lipman et al. 2023; Liu et al. 2023). At t = 1
there is nothing but noise, so the terminal signal-to-noise ratio is zero by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from shared.diffusion.denoiser import Denoiser, Tensors
from shared.diffusion.guidance import Guidance

Velocity = Callable[[Tensor, float], Tensor]
"""Samples (B, C, h, w) and their time t to v."""


def draw_times(seeds: Sequence[int]) -> Tensor:
    """Draw a training time per seed: one half logit-normal, the other uniform.

    Logit-normal times (Esser et al. 2024, section 3.1) dwell in the middle, where most is to
    learn, and leave one in seventy to t > 0.9, where sampling begins and the crops' staining
    is taken up. Uniform ones see to that.
    """
    other = [seed ^ 1 for seed in seeds]  # the noise has the seeds themselves
    middle, whole, side = draw_noise(other, (3,)).unbind(1)
    uniform = torch.special.ndtr(whole)
    return torch.where(side < 0, torch.sigmoid(middle), uniform)


def flow_loss(
    denoiser: Denoiser, latents: Tensor, condition: Tensors, times: Tensor, noise: Tensor
) -> Tensor:
    """Mean squared error of the predicted velocity; latents (B, C, h, w), times (B,)."""
    share = times.view(-1, 1, 1, 1)
    noisy = (1 - share) * latents + share * noise
    predicted = denoiser(noisy, times, denoiser.encode_condition(condition))
    loss: Tensor = (predicted.float() - (noise - latents)).square().mean()
    return loss


def draw_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Draw float32 noise (len(seeds), *shape), each row from its own seed, on the CPU."""
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows)


def combine(parts: Tensor, weights: Sequence[float]) -> Tensor:
    """Sum the branches' predictions (branches · B, …), branch after branch, by their weights."""
    total = torch.zeros_like(parts[: len(parts) // len(weights)], dtype=torch.float32)
    for part, weight in zip(parts.chunk(len(weights)), weights, strict=True):
        total += weight * part.float()
    return total


def guided(denoiser: Denoiser, encoded: Tensors, guidance: Guidance) -> Velocity:
    """Weigh the predictions of several branches, all computed in one batch.

    Args:
        encoded: of the images, see `Denoiser.encode_branches`.
        guidance: the branches' weights.
    """

    def velocity(sample: Tensor, time: float) -> Tensor:
        weights = guidance.at(time)
        samples = sample.repeat(len(weights), 1, 1, 1)
        times = torch.full((len(samples),), time, device=sample.device)
        return combine(denoiser(samples, times, denoiser.first(encoded, len(samples))), weights)

    return velocity


class Solver:
    """Integrates dx/dt = v from t = 1 to 0 by Adams-Bashforth of second order.

    One evaluation per step; the first step is Euler's, and with `first_order` all are.

    Attributes:
        sample: x at the present time, (B, C, h, w); at first the noise.
        steps: number of equal steps from t = 1 to 0.
        done: steps done; above 0 at first for a sample that is no pure noise.
    """

    def __init__(
        self, sample: Tensor, steps: int, first_order: bool = False, done: int = 0
    ) -> None:
        self.sample = sample
        self.steps = steps
        self.first_order = first_order
        self.done = done
        self._before: Tensor | None = None

    @property
    def finished(self) -> bool:
        """Whether `sample` is x0."""
        return self.done == self.steps

    @property
    def time(self) -> float:
        """The present time t."""
        return 1 - self.done / self.steps

    def advance(self, velocity: Tensor) -> None:
        """Go one step on by the velocity at the present time."""
        slope = velocity
        if self._before is not None and not self.first_order:
            slope = 1.5 * velocity - 0.5 * self._before
        self.sample, self._before = self.sample - slope / self.steps, velocity
        self.done += 1


def sample_flow(
    velocity: Velocity,
    noise: Tensor,
    steps: int,
    callback: Callable[[int], None] | None = None,
    first_order: bool = False,
) -> Tensor:
    """Integrate from noise to x0, (B, C, h, w).

    Args:
        velocity: v(x, t).
        noise: x at t = 1.
        steps: number of equal steps.
        callback: called with the number of steps done.
        first_order: take Euler's steps, as students are taught to.
    """
    solver = Solver(noise, steps, first_order)
    while not solver.finished:
        solver.advance(velocity(solver.sample, solver.time))
        if callback is not None:
            callback(solver.done)
    return solver.sample
