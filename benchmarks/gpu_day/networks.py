"""The networks by themselves: errors of their precision, time of a step, kinds of kernels.

Every function runs on the GPU, and on the CPU where there is none, to rehearse it.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.batches import Batch
from heterotissue.estimate import bands
from services.deploy.onnx_graph import example, make_graph
from shared.contracts.base import Classes
from shared.contracts.recipe import Recipe
from shared.diffusion.autoencoder import (
    Autoencoder,
    decode_latents,
    encode_latents,
    make_vae,
    to_pixels,
    vae_factor,
)
from shared.diffusion.conditionings import make_denoiser
from shared.diffusion.denoiser import Denoiser
from shared.diffusion.gpu import Captured, prepare_denoiser, prepare_vae, uncaptured
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.diffusion.precision import autocast
from shared.serving.protocol import Part, engine_tensors

CLASSES = Classes.of("gland", "stroma")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = {
    "attention": ("attention", "fmha", "flash", "softmax"),
    "matrix products, convolutions": ("gemm", "conv", "cutlass", "xmma", "nvjet", "fprop"),
    "normalization": ("norm", "moments"),
    "copies and casts": ("copy", "cat", "memcpy", "transpose", "nchw", "nhwc"),
    "element by element": ("elementwise", "pointwise", "triton"),
}
"""Kind of kernel → words in the names of its kernels; the first match counts. Attention is first,
because its kernels are made with CUTLASS too."""


def seconds(work: Callable[[], Any], least: float = 0.3) -> float:
    """Return the median seconds of a call, after two warm-up calls.

    Args:
        work: the call.
        least: total seconds after which measuring stops, after 3 to 50 calls.
    """
    for _ in range(2):
        work()
    taken: list[float] = []
    while len(taken) < 3 or (sum(taken) < least and len(taken) < 50):
        wait()
        began = time.perf_counter()
        work()
        wait()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def wait() -> None:
    """Wait until the GPU has done what it was told."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peak() -> float:
    """Measure the FLOP/s of a bf16 product of two random square matrices."""
    side = 8192 if DEVICE == "cuda" else 512
    one, other = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / seconds(lambda: one @ other)


def make_networks(recipe: Recipe) -> HeteroTissuePipeline:
    """Make a recipe's networks, untrained but seeded, because speed does not depend on weights."""
    torch.manual_seed(0)
    vae = make_vae(recipe.vae).eval()
    denoiser = make_denoiser(recipe.denoiser, recipe.size, CLASSES, vae).eval()
    for module in denoiser.modules():  # untrained output layers are zero, and hide all errors
        if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.02)
    return HeteroTissuePipeline(vae, denoiser)


def prepared(pipeline: HeteroTissuePipeline, recipe: Recipe) -> HeteroTissuePipeline:
    """Return a copy on the device, as the service runs it."""
    own = HeteroTissuePipeline(copy.deepcopy(pipeline.vae), copy.deepcopy(pipeline.denoiser))
    own.vae.to(DEVICE)
    own.denoiser.to(DEVICE)
    prepare_vae(own.vae, recipe.precision)
    prepare_denoiser(own.denoiser, recipe.precision)
    return own


@contextmanager
def inference(recipe: Recipe) -> Iterator[None]:
    """Return a context for inference in the recipe's precision; on a GPU the weights have it."""
    wanted = recipe.precision if DEVICE == "cpu" else "fp32"
    with torch.inference_mode(), autocast("cpu", wanted):
        yield


def noise_batch(recipe: Recipe, images: int) -> Batch:
    """Make a batch: label maps with bands of two classes, and a crop of noise for each class."""
    side = int(recipe.size * recipe.denoiser.crop_max)
    labels, crops = bands(CLASSES, recipe.size, side, images)
    return Batch(labels, crops, list(range(images)))


class Step:
    """A call that evaluates a denoiser once on a batch of `rows` images."""

    def __init__(self, denoiser: Denoiser, vae: Autoencoder, recipe: Recipe, rows: int) -> None:
        self.denoiser = denoiser
        batch, side = noise_batch(recipe, rows), recipe.size // vae_factor(vae)
        self.encoded = denoiser.encode_branches(
            batch.labels, batch.crops, [(True, True)], lambda images: encode_latents(vae, images)
        )
        channels = int(vae.config.latent_channels)
        self.sample = torch.randn(rows, channels, side, side, device=DEVICE)
        self.time = torch.full((rows,), 0.5, device=DEVICE)

    def __call__(self) -> Tensor:
        result: Tensor = self.denoiser(self.sample, self.time, self.encoded)
        return result


@dataclass(frozen=True)
class Difference:
    """The largest and the mean absolute difference of two outputs, and the spread of the first."""

    largest: float
    mean: float
    spread: float

    @classmethod
    def of(cls, expected: Tensor, found: Tensor) -> Difference:
        one, other = expected.float().cpu(), found.float().cpu()
        gap = (one - other).abs()
        return cls(*(round(float(x), 5) for x in (gap.max(), gap.mean(), one.std())))


def errors(
    pipeline: HeteroTissuePipeline, recipe: Recipe, part: Part, compute: Callable[..., Tensor]
) -> dict[str, Any]:
    """Compare an engine with PyTorch in fp32, at three shapes.

    Args:
        pipeline: the networks in fp32, on the CPU or the device.
        recipe: their recipe.
        part: the network.
        compute: the engine; it takes the inputs of the part's graph on the device.

    Returns:
        Rows and the varying size → a `Difference`.
    """
    inputs, _ = engine_tensors(part, pipeline, recipe.size)
    exact = make_graph(pipeline, part, inputs, torch.float32).to(DEVICE)
    unit = vae_factor(pipeline.vae) if part == "vae_encoder" else 1
    found = {}
    for rows, free in ((1, 5), (3, 12), (8, 9)):
        given = [value.to(DEVICE) for value in example(inputs, rows, free * unit)]
        with torch.inference_mode():
            gap = Difference.of(exact(*given), compute(*given))
        found[f"{rows} x {free}"] = gap.__dict__
    return found


def denoiser_times(
    step: Step, rows: int, flops: float, most: float, ways: dict[str, Callable[..., Tensor]]
) -> dict[str, Any]:
    """Time a denoiser's step in several ways.

    Args:
        step: the step.
        rows: its rows.
        flops: floating point operations of a row.
        most: peak of the device in FLOP/s.
        ways: name → forward pass, which takes what `Denoiser.forward` takes.

    Returns:
        Way → milliseconds, and share of the peak; or the error of this way.
    """
    table: dict[str, Any] = {}
    for way, forward in ways.items():
        try:
            taken = seconds(lambda: forward(step.sample, step.time, step.encoded))  # noqa: B023
        except Exception as error:  # one way may lack memory or a compiler
            table[way] = {"error": f"{type(error).__name__}: {error}"[:300]}
            continue
        table[way] = {
            "ms": round(taken * 1000, 3), "of_peak": round(rows * flops / taken / most, 4)
        }  # fmt: skip
    return table


def forward_ways(denoiser: Denoiser, compiled: bool) -> dict[str, Callable[..., Tensor]]:
    """Return the ways to run a prepared denoiser: kernel by kernel, as a graph, and compiled."""
    with uncaptured(denoiser):
        plain: Callable[..., Tensor] = denoiser.forward
        ways = {"kernels": plain}
        if DEVICE == "cuda":
            ways["graph"] = Captured(plain, 256)
        if compiled:
            other = copy.deepcopy(denoiser)
            other.unet.compile(dynamic=False)
            ways["compiled"] = other.forward
            if DEVICE == "cuda":
                ways["compiled graph"] = Captured(other.forward, 256)
    return ways


class _Unet(nn.Module):
    """A denoiser whose encoded condition is a list, in the order of its sorted names."""

    def __init__(self, denoiser: Denoiser, names: list[str]) -> None:
        super().__init__()
        self.denoiser, self.names = denoiser, names

    def forward(self, sample: Tensor, time: Tensor, condition: list[Tensor]) -> Tensor:
        found: Tensor = self.denoiser(sample, time, dict(zip(self.names, condition, strict=True)))
        return found


def ahead_of_time(step: Step, folder: Path) -> Callable[..., Tensor]:
    """Compile a step for its shapes into a package (AOTInductor), and load it.

    Returns:
        The forward pass; it takes what `Denoiser.forward` takes.
    """
    names = sorted(step.encoded)
    with uncaptured(step.denoiser):
        given = (step.sample, step.time, [step.encoded[name] for name in names])
        program = torch.export.export(_Unet(step.denoiser, names), given)
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(folder / f"rows-{len(step.sample)}.pt2")
        )
    run = torch._inductor.aoti_load_package(path)
    return lambda sample, time, encoded: run(sample, time, [encoded[name] for name in names])


def decoder_times(
    pipeline: HeteroTissuePipeline, recipe: Recipe, sizes: tuple[int, ...]
) -> dict[int, float]:
    """Return the images per second that the decoder makes of latents: rows → rate."""
    side = recipe.size // vae_factor(pipeline.vae)
    rates = {}
    for rows in sizes:
        channels = int(pipeline.vae.config.latent_channels)
        latents = torch.randn(rows, channels, side, side, device=DEVICE)
        taken = seconds(lambda: to_pixels(decode_latents(pipeline.vae, latents)))  # noqa: B023
        rates[rows] = round(rows / taken, 1)
    return rates


def image_rates(
    pipeline: HeteroTissuePipeline, recipe: Recipe, sizes: tuple[int, ...]
) -> dict[int, float]:
    """Return the images per second in this process, from maps to pixels: images per call → rate."""
    rates = {}
    for size in sizes:
        batch = noise_batch(recipe, size)
        taken = seconds(
            lambda: pipeline(batch.labels, batch.crops, batch.seeds, recipe.sampling),  # noqa: B023
            least=1.0,
        )
        rates[size] = round(size / taken, 2)
    return rates


def kernel_shares(step: Callable[[], Any]) -> dict[str, float]:
    """Profile a step on the GPU, and return each kind of kernel's share of its time."""
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        wait()
    shares: dict[str, float] = defaultdict(float)
    for kernel in profile.key_averages():
        kind = next(
            (kind for kind, words in KINDS.items() if any(w in kernel.key.lower() for w in words)),
            "other",
        )
        shares[kind] += kernel.self_device_time_total
    total = sum(shares.values())
    return {kind: round(share / total, 3) for kind, share in sorted(shares.items())}


def percentiles(values: list[float]) -> dict[str, float]:
    """Return the median and the 95th percentile."""
    return {f"p{share}": round(float(np.percentile(values, share)), 4) for share in (50, 95)}
