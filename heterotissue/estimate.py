"""The cost of a synthetic image, extrapolated from one batch on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from shared.contracts.base import Classes
from shared.contracts.sampling import Sampling
from shared.diffusion.crops import Crop
from shared.diffusion.gpu import uncaptured
from shared.diffusion.guidance import Guidance
from shared.diffusion.model_store import LoadedModel
from shared.errors import InputError
from shared.imaging.codec import encode_png

SHORT_STEPS, LONG_STEPS = 1, 3
"""Denoising steps of the two counted runs. Their difference gives the work of a step."""


@dataclass(frozen=True)
class Estimate:
    """The cost of one image.

    Attributes:
        evaluations: number of denoiser evaluations, over all guidance branches and steps.
        flops: floating point operations; a multiply-add counts as two.
        seconds: time of a batch on this machine, divided by the images of the batch.
        stored: bytes of the PNG files of the image and its label map.
    """

    evaluations: int
    flops: float
    seconds: float
    stored: int


def estimate(sampler: LoadedModel, size: int, batch: int) -> Estimate:
    """Measure a batch of images, each with a crop of every class; return the cost of one image.

    Args:
        sampler: the model, on the device to measure.
        size: side of the images in pixels.
        batch: number of images made at a time.

    Raises:
        InputError: the model cannot make images of this size.
    """
    record, factor = sampler.record, int(sampler.pipeline.denoiser.config.factor)
    if size % (factor * 2 ** (len(record.recipe.denoiser.channels) - 1)):
        raise InputError(f"{record.model} makes no images of {size} px: its levels do not divide")
    side = int(size * record.recipe.denoiser.crop_max)
    labels, crops = bands(record.classes, size, side, batch)
    sampling = record.recipe.sampling
    steps = sampling.steps
    guidance = Guidance.from_scale(sampling)
    # Guide all counted steps, so that they cost the same.
    guided = sampling.model_copy(update={"guidance_low": 0.0, "guidance_high": 1.0})
    evaluations, per_step = guidance.evaluations(steps), len(guidance.branches)
    after = evaluations / per_step - SHORT_STEPS

    def settings(number: int) -> Sampling:
        return guided.model_copy(update={"steps": number})

    def compute(number: int) -> object:
        # In fp32, because the counter cannot see through the casts of mixed precision.
        # One image, because operations grow with their number.
        one = (labels[:1], crops[:1], range(1))
        return sampler.pipeline(*one, settings(number), precision="fp32")

    sampler.generate(labels, crops, range(batch), settings(SHORT_STEPS))  # not timed: warms up
    began = time.perf_counter()
    image = sampler.generate(labels, crops, range(batch), sampling)[0]
    seconds = time.perf_counter() - began
    with uncaptured(sampler.pipeline.denoiser):
        short, long = (count_flops(partial(compute, steps)) for steps in (SHORT_STEPS, LONG_STEPS))
    flops = _extrapolate(short, long, after)
    return Estimate(
        evaluations=evaluations,
        flops=flops,
        seconds=seconds / batch,
        stored=len(encode_png(image)) + len(encode_png(labels[0])),
    )


def bands(
    classes: Classes, size: int, side: int, images: int
) -> tuple[NDArray[np.uint8], list[list[Crop]]]:
    """Make label maps with a band of each class, and a crop of noise for each class.

    Args:
        classes: classes of the model.
        size: side of the label maps in pixels.
        side: side of the crops in pixels.
        images: number of label maps.

    Returns:
        Label maps, uint8 (images, size, size), and the crops of each label map.
    """
    first, count = classes.first, len(classes)
    band = np.linspace(first, count, size, endpoint=False).astype(np.uint8)
    labels = np.broadcast_to(band, (images, size, size)).copy()
    pixels = np.random.default_rng(0).integers(256, size=(side, side, 3), dtype=np.uint8)
    return labels, [[Crop(label, 0, 0, pixels) for label in range(first, count)]] * images


def count_flops(work: Callable[[], object]) -> float:
    """Count the floating point operations of a call; multiply-add counts as two."""
    # FlopCounterMode counts only the plain attention kernel on every device.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return float(counter.get_total_flops())


def _extrapolate(short: float, long: float, after: float) -> float:
    return short + (long - short) / (LONG_STEPS - SHORT_STEPS) * after
