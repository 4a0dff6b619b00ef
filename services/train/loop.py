"""The training loop of the autoencoder and of the denoiser; it resumes exactly after a pause.

Training runs in segments. A segment of the denoiser, for example, trains steps 500 to 999:

1. `services.train.segments` makes the network and its objective, and loads the checkpoint at
   step 500, which the previous segment wrote.
2. Threads draw the batches of the next steps (`Batches.stream`). Row r of step s depends only on
   (seed, s, r), not on the process that draws it.
3. For each step, `Training.step` sets the learning rate, computes the loss under autocast with
   one noise seed per row, and back-propagates it.
4. Gradients are averaged over all processes and clipped. AdamW updates the weights, and the
   moving average (EMA) follows them.
5. Every `LOG_EVERY` steps the loss and the other figures are read from the device and kept as
   metrics.
6. After step 999 `segments` writes the checkpoint at step 1000: weights, moving average and the
   optimizer's moments. Training has no other state, so the next segment, on any worker, goes on
   as if there had been no pause: the weights are the same to the bit.
7. A process that is told to end does so after the present step (`services.train.ending`), and
   `segments` writes a checkpoint at that step, where the segment goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import safetensors.torch
import torch
from torch import Tensor, distributed, nn

from services.train.data import Batch, Batches
from shared.diffusion.precision import autocast
from shared.seeds import image_seed

LOG_EVERY = 10
"""Steps between two rows of metrics."""

AHEAD = 4
"""Number of batches drawn ahead for a GPU; on a CPU it is 1, because threads share its cores."""


class Objective(Protocol):
    """A module to train, and its loss on a batch."""

    module: nn.Module

    def loss(self, batch: Batch, seeds: Sequence[int], step: int) -> dict[str, Tensor]:
        """Return named figures of a batch; training minimizes the figure 'loss'.

        Args:
            batch: the batch.
            seeds: one per row, for its noise and its time.
            step: number of the training step.
        """


@dataclass(frozen=True)
class LoopSettings:
    """The settings of one training; see `shared.contracts.recipe`."""

    batch_size: int
    learning_rate: float
    steps: int
    warmup: int
    ema: float
    grad_clip: float
    precision: str
    seed: int
    device: str


@dataclass
class Progress:
    """The measurements of a segment.

    Attributes:
        step: the next step.
        metrics: rows of figures; they are reproducible.
        seconds: duration of the segment.
        waiting: seconds of it in which training waited for batches.
    """

    step: int = 0
    metrics: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    waiting: float = 0.0


def world() -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _mean(value: Tensor) -> Tensor:
    """Average a tensor over all processes, in place."""
    _, processes = world()
    if processes > 1:
        distributed.all_reduce(value)
        value /= processes
    return value


class Training:
    """A module in training, with its optimizer and the moving average of its weights."""

    def __init__(self, objective: Objective, settings: LoopSettings) -> None:
        self.objective = objective
        self.settings = settings
        self.module = objective.module
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(),
            lr=settings.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=0.0,
            fused=True,
        )
        self.average = {name: p.detach().clone() for name, p in self.module.named_parameters()}

    def rate(self, step: int) -> float:
        """Return the learning rate: linear warm-up, then half a cosine down to a tenth."""
        settings = self.settings
        if step < settings.warmup:
            return settings.learning_rate * (step + 1) / settings.warmup
        share = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
        return settings.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))

    def step(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """Take one training step and return its figures, which stay on the device."""
        settings = self.settings
        rank, processes = world()
        size = len(batch.images)
        first = (step * processes + rank) * size
        seeds = [image_seed(settings.seed, row) for row in range(first, first + size)]
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        with autocast(settings.device, settings.precision):
            losses = self.objective.loss(batch, seeds, step)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        if processes > 1:
            for parameter in self.module.parameters():
                if parameter.grad is not None:
                    _mean(parameter.grad)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), settings.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(settings.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            weights: list[Tensor] = list(self.module.parameters())
            # one kernel for all tensors
            torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)
        return {name: value.detach() for name, value in (losses | {"grad_norm": norm}).items()}

    def figures(self, step: int, measured: dict[str, Tensor]) -> dict[str, float]:
        """Average a step's figures over all processes, and add the step and the learning rate.

        On a GPU this waits until the step has ended.

        Raises:
            ArithmeticError: the loss is not finite.
        """
        figures = {name: float(_mean(value)) for name, value in measured.items()}
        if not math.isfinite(figures["loss"]):
            raise ArithmeticError(f"the loss is {figures['loss']} at step {step}")
        return {"step": step, **figures, "learning_rate": self.rate(step)}

    def run(
        self,
        batches: Batches,
        start: int,
        stop: int,
        report: Callable[[int, str], None],
        told: Callable[[], bool] = lambda: False,
    ) -> Progress:
        """Train from step `start` to step `stop` - 1.

        Args:
            batches: source of the batches.
            start, stop: first step, and the step after the last one.
            report: called with the number of finished steps and a note.
            told: called after every step; True ends the training there.
        """
        progress = Progress(start)
        began = mark = time.perf_counter()
        rank, _ = world()
        note = ""
        ahead = 1 if self.settings.device == "cpu" else AHEAD
        for step, batch in batches.stream(start, stop, self.settings.batch_size, rank, ahead):
            progress.waiting += time.perf_counter() - mark
            measured = self.step(step, batch)
            if step % LOG_EVERY == 0 or step == stop - 1:
                progress.metrics.append(self.figures(step, measured))
                note = f"loss {progress.metrics[-1]['loss']:.4f}"
            report(step + 1 - start, note)
            progress.step = step + 1
            if told():
                break
            mark = time.perf_counter()
        progress.seconds = time.perf_counter() - began
        return progress

    def save(self, about: dict[str, str] | None = None) -> bytes:
        """Return a checkpoint, as a safetensors file with the metadata `about`."""
        tensors = {f"model/{name}": value for name, value in self.module.state_dict().items()}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        for name, parameter in self.module.named_parameters():
            state = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer/{key}/{name}": value for key, value in state.items()}
        return safetensors.torch.save({key: t.detach().cpu() for key, t in tensors.items()}, about)

    def load(self, data: bytes) -> None:
        """Load a checkpoint that `save` returned."""
        tensors = safetensors.torch.load(data)
        prefix = "model/"
        self.module.load_state_dict(
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        )
        for name, parameter in self.module.named_parameters():
            self.average[name].copy_(tensors[f"average/{name}"])
            keys = ("step", "exp_avg", "exp_avg_sq")
            if f"optimizer/step/{name}" in tensors:
                self.optimizer.state[parameter] = {
                    key: tensors[f"optimizer/{key}/{name}"].to(parameter.device) for key in keys
                }

    def use_average(self) -> None:
        """Replace the weights with their moving average."""
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.copy_(self.average[name])
