"""What a dataset will cost: measured on one batch here, and multiplied."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from shared.diffusion.crops import Crop
from shared.diffusion.gpu import uncaptured
from shared.diffusion.guidance import Guidance
from shared.diffusion.model_store import Sampler
from shared.errors import InputError
from shared.imaging.regions import encode_png

SHORT, LONG = 1, 3
"""Denoising steps that are run; more cost as much each."""


@dataclass(frozen=True)
class Estimate:
    """The cost of one image.

    Attributes:
        evaluations: of the denoiser, all guidance branches of all steps.
        flops: floating point operations; a multiplication and an addition are two.
        seconds: on this machine, as a share of a batch.
        stored: bytes of the PNGs of the image and its label map.
    """

    evaluations: int
    flops: float
    seconds: float
    stored: int


def estimate(sampler: Sampler, size: int, batch: int) -> Estimate:
    """Measure a batch of a model's images with a crop of every class.

    Args:
        sampler: the model, on the device to be measured.
        size: side of the images, pixels.
        batch: images made at a time.

    Raises:
        InputError: the model cannot make images of this size.
    """
    record, factor = sampler.record, int(sampler.pipeline.denoiser.config.factor)
    if size % (factor * 2 ** (len(record.recipe.denoiser.channels) - 1)):
        raise InputError(f"{record.model} makes no images of {size} px: its levels do not divide")
    first, count = record.classes.first, len(record.classes)
    rng = np.random.default_rng(0)
    bands = np.linspace(first, count, size, endpoint=False).astype(np.uint8)
    labels = np.broadcast_to(bands, (batch, size, size)).copy()
    side = int(size * record.recipe.denoiser.crop_max)
    crop = rng.integers(256, size=(side, side, 3), dtype=np.uint8)
    crops = [[Crop(label, 0, 0, crop) for label in range(first, count)]] * batch
    sampling = record.recipe.sampling
    steps = sampling.steps
    guidance = Guidance.from_scale(sampling)
    # All steps that are measured are guided, so that they cost alike.
    options = sampling.model_dump(exclude={"steps"}) | {"guidance_low": 0, "guidance_high": 1}
    evaluations, per_step = guidance.evaluations(steps), len(guidance.branches)
    after = evaluations / per_step - SHORT

    def make(number: int) -> tuple[float, NDArray[np.uint8]]:
        began = time.perf_counter()
        images = sampler.generate(labels, crops, range(batch), steps=number, **options)
        return time.perf_counter() - began, images

    def count_flops(number: int) -> float:
        # Only the plain kernel of attention is counted on every device.
        denoiser = sampler.pipeline.denoiser
        with (
            FlopCounterMode(display=False) as counter,
            sdpa_kernel(SDPBackend.MATH),
            uncaptured(denoiser),
        ):
            make(number)
        return float(counter.get_total_flops())

    make(SHORT)
    seconds = _extrapolate(make(SHORT)[0], make(LONG)[0], after)
    flops = _extrapolate(count_flops(SHORT), count_flops(LONG), after)
    image = make(steps)[1][0]
    return Estimate(
        evaluations=evaluations,
        flops=flops / batch,
        seconds=seconds / batch,
        stored=len(encode_png(image)) + len(encode_png(labels[0])),
    )


def _extrapolate(short: float, long: float, after: float) -> float:
    return short + (long - short) / (LONG - SHORT) * after
