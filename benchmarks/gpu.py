"""How fast is a recipe's model on a GPU, and what limits it?  python -m benchmarks.gpu [--recipe R]

The weights are untrained, because speed does not depend on them. One run measures:

- the bf16 matrix product, as the peak of the GPU;
- a step of the denoiser at many batch sizes: eager, as a CUDA graph, and compiled;
- images per second of the default path and of a plain diffusers pipeline;
- the shares of a step's time by kind of kernel;
- the time that the recipe's training would take.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor

from benchmarks.batches import Batch, PlainPipeline
from heterotissue.estimate import bands, count_flops
from heterotissue.recipes import load_recipe
from services.train import data
from services.train.loop import LoopSettings, Objective, Training
from services.train.objectives import DecoderObjective, DenoiserObjective, VaeObjective
from services.train.perceptual import PerceptualLoss
from shared.contracts.base import Classes
from shared.contracts.recipe import DenoiserRecipe, Recipe, VaeRecipe
from shared.diffusion.autoencoder import (
    Autoencoder,
    decode_latents,
    encode_latents,
    make_vae,
    vae_factor,
)
from shared.diffusion.conditionings import make_denoiser
from shared.diffusion.denoiser import Denoiser
from shared.diffusion.gpu import Captured, prepare_denoiser, prepare_vae, uncaptured
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.errors import InputError
from shared.storage import open_store

CLASSES = Classes.of("gland", "stroma")
SIZES = (1, 4, 16, 64, 256)
PLAIN_SIZES = (16, 64)
COMPILED_SIZES = (16, 256)
KINDS = {
    "matrix products, convolutions": ("gemm", "conv", "cutlass", "xmma", "nvjet", "fprop"),
    "attention": ("attention", "fmha", "flash", "softmax"),
    "normalization": ("norm", "moments"),
    "copies and casts": ("copy", "cat", "memcpy", "transpose", "nchw", "nhwc"),
    "element by element": ("elementwise", "pointwise", "triton"),
}  # fmt: skip
"""Kind of kernel → words in the names of its kernels; the first match counts."""


def seconds(work: Callable[[], Any], least: float = 0.3) -> float:
    """Return the median seconds of a call on the GPU, after two warm-up calls.

    Args:
        work: the call.
        least: total seconds after which measuring stops, after 3 to 50 calls.
    """
    for _ in range(2):
        work()
    torch.cuda.synchronize()
    taken: list[float] = []
    while len(taken) < 3 or (sum(taken) < least and len(taken) < 50):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        taken.append(start.elapsed_time(end) / 1000)
    return statistics.median(taken)


def peak() -> float:
    """Measure the FLOP/s of a bf16 product of two random 8192 × 8192 matrices."""
    side = 8192
    one, other = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / seconds(lambda: one @ other)


def example(recipe: Recipe, images: int) -> Batch:
    """Make a batch: label maps with bands of two classes, and a crop of noise for each class."""
    side = int(recipe.size * recipe.denoiser.crop_max)
    labels, crops = bands(CLASSES, recipe.size, side, images)
    return Batch(labels, crops, list(range(images)))


class Step:
    """A call that evaluates a denoiser once on a batch of `rows` images."""

    def __init__(self, denoiser: Denoiser, vae: Autoencoder, recipe: Recipe, rows: int) -> None:
        self.denoiser = denoiser
        batch, side = example(recipe, rows), recipe.size // vae_factor(vae)
        self.encoded = denoiser.encode_branches(
            batch.labels, batch.crops, [(True, True)], lambda images: encode_latents(vae, images)
        )
        channels = int(vae.config.latent_channels)
        self.sample = torch.randn(rows, channels, side, side, device="cuda")
        self.time = torch.full((rows,), 0.5, device="cuda")

    def __call__(self) -> Tensor:
        result: Tensor = self.denoiser(self.sample, self.time, self.encoded)
        return result


@torch.inference_mode()
def denoiser_steps(steps: dict[int, Step], one: float, most: float) -> dict[int, Any]:
    """Time denoiser steps, kernel by kernel and as a CUDA graph.

    Args:
        steps: rows → a step with this number of rows; its denoiser has no CUDA graph yet.
        one: floating point operations of one row.
        most: peak of the GPU in FLOP/s.

    Returns:
        Rows → way → milliseconds of a step, and its share of the peak.
    """
    table: dict[int, Any] = {}
    for rows, step in steps.items():
        table[rows] = {}
        forward = step.denoiser.forward
        for way, found in (("kernels", forward), ("graph", Captured(forward, rows))):
            step.denoiser.forward = found  # type: ignore[method-assign]
            taken = seconds(step)
            row = {"ms": round(taken * 1000, 3), "of_peak": round(rows * one / taken / most, 3)}
            table[rows][way] = row
        step.denoiser.forward = forward  # type: ignore[method-assign]
        print(rows, table[rows], flush=True)
    return table


@torch.inference_mode()
def kernels(step: Callable[[], Any]) -> dict[str, float]:
    """Profile a step, and return each kind of kernel's share of its time on the GPU."""
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    shares: dict[str, float] = defaultdict(float)
    for kernel in profile.key_averages():
        kind = next(
            (kind for kind, words in KINDS.items() if any(w in kernel.key.lower() for w in words)),
            "other",
        )
        shares[kind] += kernel.self_device_time_total
    total = sum(shares.values())
    return {kind: round(share / total, 3) for kind, share in sorted(shares.items())}


def images_per_second(vae: Autoencoder, denoiser: Denoiser, recipe: Recipe) -> dict[str, Any]:
    """Measure images per second, from label maps to pixels.

    Returns:
        Way of making images → images per call → images per second.
    """
    ours = HeteroTissuePipeline(copy.deepcopy(vae), copy.deepcopy(denoiser))
    prepare_vae(ours.vae, recipe.precision)
    prepare_denoiser(ours.denoiser, recipe.precision)
    scheduler = FlowMatchEulerDiscreteScheduler()
    plain = PlainPipeline(vae, denoiser, scheduler)

    def default(batch: Batch) -> Any:
        return ours(batch.labels, batch.crops, batch.seeds, recipe.sampling)

    def autocast(batch: Batch) -> Any:
        with torch.autocast("cuda", torch.bfloat16):
            return plain(batch)

    rates: dict[str, Any] = {}
    for way, make, sizes in (
        ("default", default, SIZES),
        ("plain, fp32", plain, PLAIN_SIZES),
        ("plain, bf16 by autocast", autocast, PLAIN_SIZES),
    ):
        rates[way] = {}
        for size in sizes:
            batch = example(recipe, size)
            rates[way][size] = round(size / seconds(lambda: make(batch), least=1.0), 2)  # noqa: B023
            print(way, size, rates[way][size], flush=True)
    return rates


def training(
    vae: Autoencoder, denoiser: Denoiser, recipe: Recipe, store: str, compiled: bool
) -> dict[str, Any]:
    """Measure the training steps of the autoencoder, the decoder and the denoiser.

    Args:
        vae: the autoencoder.
        denoiser: the denoiser.
        recipe: recipe of the training.
        store: address of the store with the perceptual loss's weights.
        compiled: compile the networks, and use the channels-last memory format.

    Returns:
        Kind of training → seconds of a step, and minutes of all steps of the recipe.
    """
    try:
        perceptual = (
            PerceptualLoss(recipe.vae.perceptual, open_store(store), "cuda")
            if recipe.vae.perceptual
            else None
        )
    except InputError as error:
        print(f"decoder without its perceptual loss: {error}")
        perceptual = None
    kinds: dict[str, tuple[Callable[[], Objective], VaeRecipe | DenoiserRecipe, int]] = {
        "vae": (lambda: VaeObjective(vae, recipe.vae, "cuda"), recipe.vae, recipe.vae.steps),
        "decoder": (
            lambda: DecoderObjective(vae, perceptual, "cuda"), recipe.vae, recipe.vae.decoder_steps
        ),
        "denoiser": (
            lambda: DenoiserObjective(denoiser, vae, "cuda"), recipe.denoiser, recipe.denoiser.steps
        ),
    }  # fmt: skip
    found: dict[str, Any] = {}
    for kind, (make, own, steps) in kinds.items():
        if not steps:
            continue
        settings = LoopSettings(
            batch_size=own.batch_size, learning_rate=own.learning_rate, steps=steps,
            warmup=own.warmup, ema=own.ema, grad_clip=own.grad_clip, precision=recipe.precision,
            seed=0, device="cuda",
        )  # fmt: skip
        trained = Training(make(), settings)
        if compiled:
            for network in {
                "vae": (vae.encoder, vae.decoder),
                "decoder": (vae.encoder, vae.decoder),
                "denoiser": (denoiser.unet,),
            }[kind]:
                network.to(memory_format=torch.channels_last)
                network.compile(dynamic=False)
        side = recipe.size if kind == "denoiser" else recipe.vae.crop
        batch = training_batch(recipe, own.batch_size, side, vae if kind == "denoiser" else None)
        took = seconds(lambda: trained.step(0, batch), least=2.0)  # noqa: B023
        found[kind] = {"seconds_per_step": round(took, 4), "minutes": round(took * steps / 60, 1)}
        print(kind, found[kind], flush=True)
    return found


def training_batch(recipe: Recipe, rows: int, side: int, vae: Autoencoder | None) -> data.Batch:
    """Make a training batch of noise images; if `vae` is given, with precomputed latents."""
    made = example(recipe, rows)
    images = np.random.default_rng(0).integers(256, size=(rows, side, side, 3), dtype=np.uint8)
    latents = None
    if vae is not None:
        places = side // vae_factor(vae)
        latents = np.zeros((rows, int(vae.config.latent_channels), places, places), np.float16)
    given = [True] * rows
    return data.Batch(images, made.labels, made.crops, given, given, [""] * rows, latents)


def measure_steps(
    vae: Autoencoder,
    denoiser: Denoiser,
    recipe: Recipe,
    most: float,
    keep: Callable[[str, Any], None],
) -> None:
    """Time the steps of a prepared denoiser, without compilation and compiled.

    Args:
        vae: the autoencoder.
        denoiser: the denoiser, which this function leaves compiled.
        recipe: recipe of the model.
        most: peak of the GPU in FLOP/s.
        keep: receives each result with its name.
    """
    with torch.inference_mode():
        work = {rows: Step(denoiser, vae, recipe, rows) for rows in SIZES}
        one = count_flops(work[1])
    keep("denoiser_gigaflops", round(one / 1e9, 1))
    keep("denoiser", denoiser_steps(work, one, most))
    keep("kernels", kernels(work[max(SIZES)]))
    again = {rows: work[rows] for rows in COMPILED_SIZES}
    whole = denoiser.unet
    denoiser.unet = copy.deepcopy(whole)
    torch._dynamo.config.recompile_limit = 64  # one for each kind of block
    for block in denoiser.unet.modules():
        if isinstance(block, (ResnetBlock2D, BasicTransformerBlock)):
            block.compile(dynamic=True)
    keep("denoiser_compiled_blocks", denoiser_steps(again, one, most))
    denoiser.unet = whole
    denoiser.unet.compile(dynamic=False)
    keep("denoiser_compiled", denoiser_steps(again, one, most))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="base")
    parser.add_argument("--store", default="out/store", help="of the perceptual loss's weights")
    parser.add_argument("--out", type=Path, default=Path("out/gpu.json"))
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch finds no GPU here")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    recipe = load_recipe(given.recipe)
    vae = make_vae(recipe.vae).eval().cuda()
    denoiser = make_denoiser(recipe.denoiser, recipe.size, CLASSES, vae).eval().cuda()
    result: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "recipe": given.recipe,
        "size": recipe.size,
        "sampling": recipe.sampling.model_dump(),
    }

    def keep(name: str, value: Any) -> None:
        result[name] = value
        began = round(time.perf_counter() - start)
        print(json.dumps({name: value, "after_seconds": began}), flush=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n")

    start = time.perf_counter()
    most = peak()
    keep("peak_teraflops", round(most / 1e12, 1))
    rates = images_per_second(vae, denoiser, recipe)
    keep("images_per_second", rates)
    best = {way: max(found.values()) for way, found in rates.items()}
    keep("speedup", {way: round(best["default"] / rate, 2) for way, rate in best.items()})
    side = recipe.size // vae_factor(vae)
    with torch.inference_mode():
        latents = torch.randn(1, int(vae.config.latent_channels), side, side, device="cuda")
        keep("decoder_gigaflops", round(count_flops(lambda: decode_latents(vae, latents)) / 1e9, 1))
    for name, compiled in (("training", False), ("training_compiled", True)):
        own = copy.deepcopy(vae), copy.deepcopy(denoiser)
        keep(name, training(*own, recipe, given.store, compiled))
    prepare_vae(vae, recipe.precision)
    prepare_denoiser(denoiser, recipe.precision)
    with uncaptured(denoiser):
        measure_steps(vae, denoiser, recipe, most, keep)


if __name__ == "__main__":
    main()
