"""Flow matching: the training objective, guided velocities, and the solver.

x_t = (1 - t) x0 + t ε and v = ε - x0 (Lipman et al. 2023; Liu et al. 2023). At t = 1 the
sample is pure noise, so the terminal signal-to-noise ratio is zero without a correction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from shared.diffusion import schedule
from shared.diffusion.denoiser import Denoiser, Tensors
from shared.diffusion.guidance import Guidance

Velocity = Callable[[Tensor, float], Tensor]
"""The velocity v as a function of samples (B, C, h, w) and their time t."""


def draw_times(seeds: Sequence[int]) -> Tensor:
    """Draw a training time t in [0, 1] per seed: half of them logit-normal, half uniform.

    Logit-normal times (Esser et al. 2024, section 3.1) prefer the middle, where there is most
    to learn, but only one in seventy is above 0.9, where sampling begins and images take on the
    staining of their crops. The uniform half covers that range.
    """
    other = [seed ^ 1 for seed in seeds]  # so that times and noise are independent
    middle, whole, side = draw_noise(other, (3,)).unbind(1)
    uniform = torch.special.ndtr(whole)
    return torch.where(side < 0, torch.sigmoid(middle), uniform)


def flow_loss(
    denoiser: Denoiser, latents: Tensor, condition: Tensors, times: Tensor, noise: Tensor
) -> Tensor:
    """Compute the mean squared error of the predicted velocity.

    Args:
        denoiser: predicts the velocity.
        latents: x0, (B, C, h, w).
        condition: the result of `Denoiser.lay_out`.
        times: t, (B,).
        noise: ε, (B, C, h, w).
    """
    share = times.view(-1, 1, 1, 1)
    noisy = (1 - share) * latents + share * noise
    predicted = denoiser(noisy, times, denoiser.encode_condition(condition))
    loss: Tensor = (predicted.float() - (noise - latents)).square().mean()
    return loss


def draw_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Draw normal noise, float32 (len(seeds), *shape), each row from its own seed, on the CPU."""
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows)


def combine(parts: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the weighted sum of the branches' predictions, float32 (B, …).

    `parts` (branches · B, …) holds the B predictions of the first branch, then those of the next;
    `weights` has one weight per branch.
    """
    total = torch.zeros_like(parts[: len(parts) // len(weights)], dtype=torch.float32)
    for part, weight in zip(parts.chunk(len(weights)), weights, strict=True):
        total += weight * part.float()
    return total


def guided(denoiser: Denoiser, encoded: Tensors, guidance: Guidance) -> Velocity:
    """Return the guided velocity as a function; it evaluates all branches in one batch.

    Args:
        denoiser: predicts the velocity of each branch.
        encoded: the result of `Denoiser.encode_branches`.
        guidance: the weights of the branches.
    """
    encoded = denoiser.keep(encoded)

    def velocity(sample: Tensor, time: float) -> Tensor:
        weights = guidance.weights_at(time)
        samples = sample.repeat(len(weights), 1, 1, 1)
        times = torch.full((len(samples),), time, device=sample.device)
        return combine(denoiser(samples, times, denoiser.first(encoded, len(samples))), weights)

    return velocity


class Solver:
    """Integrates dx/dt = v from t = 1 to 0 with the second-order Adams-Bashforth method.

    A step takes one evaluation of v. The first step is an Euler step; with `first_order` all
    steps are.

    Attributes:
        sample: x at the present time, (B, C, h, w); initially the noise.
        steps: number of equal steps from t = 1 to 0.
        first_order: whether all steps are Euler steps.
        done: number of finished steps; initially above 0 if `sample` is already partly denoised.
        before: velocity of the step before; None: the next step is an Euler step.
    """

    def __init__(
        self,
        sample: Tensor,
        steps: int,
        first_order: bool = False,
        done: int = 0,
        before: Tensor | None = None,
    ) -> None:
        self.sample = sample
        self.steps = steps
        self.first_order = first_order
        self.done = done
        self.before = before
        self._times = schedule.times(steps)

    @property
    def finished(self) -> bool:
        """Whether `sample` is x0."""
        return self.done == self.steps

    @property
    def time(self) -> float:
        """The present time t; there is none once the solver is finished."""
        return self._times[self.done]

    def advance(self, velocity: Tensor) -> None:
        """Take one step with the velocity at the present time."""
        slope = velocity
        if self.before is not None and not self.first_order:
            slope = 1.5 * velocity - 0.5 * self.before
        self.sample, self.before = self.sample - slope / self.steps, velocity
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
        callback: called with the number of finished steps.
        first_order: take Euler steps only, because a few-step student was trained with them.
    """
    solver = Solver(noise, steps, first_order)
    while not solver.finished:
        solver.advance(velocity(solver.sample, solver.time))
        if callback is not None:
            callback(solver.done)
    return solver.sample
