"""Editing a real image: painting new tissue into an area of it, and drawing the whole again.

Both work on images of any size from the model's on, by the windows of `FieldSampler`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from shared.arrays import Float32, UInt8
from shared.contracts.image import MAX_EDIT_SIDE
from shared.contracts.sampling import Sampling
from shared.diffusion.appearances import Appearance
from shared.diffusion.autoencoder import encode_latents, to_raw, to_unit
from shared.diffusion.crops import Crop
from shared.diffusion.field_decoder import FieldDecoder, fixed_tensors
from shared.diffusion.fields import FieldMap, FieldSampler, Strip
from shared.diffusion.fixed_norms import norm_statistics
from shared.diffusion.model_store import LoadedModel
from shared.diffusion.schedule import times
from shared.diffusion.staining import match_staining, transfer_staining
from shared.errors import InputError


def edit_sampler(
    model: LoadedModel,
    labels: UInt8,
    crops: Sequence[Crop],
    seed: int,
    sampling: Sampling | None = None,
) -> FieldSampler:
    """Return a model's sampler for an image with this label map; `sampling`: None: the model's."""
    record = model.record
    chosen = sampling or record.recipe.sampling
    labelled = FieldMap.of(labels)
    return FieldSampler(
        model.pipeline,
        record.size,
        chosen,
        labelled,
        [Appearance.of(crops)],
        seed,
        record.recipe.precision,
    )


def paint(sampler: FieldSampler, image: UInt8, area: NDArray[np.bool_], border: int) -> UInt8:
    """Paint new tissue into an area of an image.

    The latents around the area stay those of the image in every step, so that the new tissue
    grows out of the old. In a border around the area, the new pixels fade into the old.

    Args:
        sampler: of a field of the image's size; its label map says what is painted where.
        image: uint8 RGB (h, w, 3).
        area: bool (h, w), where to paint.
        border: width of the border, pixels.

    Returns:
        uint8 RGB (h, w, 3); beyond the border every pixel is that of the image.

    Raises:
        InputError: image and area differ in size from the label map, or the area is empty.
    """
    _check(sampler, image)
    if area.shape != image.shape[:2]:
        raise InputError(
            f"the area is {area.shape[1]}×{area.shape[0]} px, but the image is "
            f"{image.shape[1]}×{image.shape[0]} px: give an area of the image's size"
        )
    if not area.any():
        raise InputError("the area is empty, or lies outside of the image: mark what to paint")
    old, painted = _encode(sampler, image), _cells(sampler, area, border)
    noise, height = sampler.noise(0, sampler.height).sample, sampler.height
    strip = Strip(0, noise)
    for step, time in zip(_watched(sampler, 0), times(sampler.sampling.steps), strict=False):
        kept = (1 - time) * old + time * noise
        sample = kept + painted * (strip.sample - kept)
        strip = sampler.advance(step, Strip(0, sample, strip.before), 0, height)
    clean = old + painted * (strip.sample - old)
    new = _decoder(sampler, old).decode(Strip(0, clean), 0, height)
    return _blended(image, new, area, border)


def redraw(sampler: FieldSampler, image: UInt8, strength: float, staining: float) -> UInt8:
    """Draw an image again, in the appearance of the sampler's crops.

    Args:
        sampler: of a field of the image's size, with the image's label map.
        image: uint8 RGB (h, w, 3).
        strength: the time t from which the image is denoised again: near 0 only colours change,
            at 1 nothing of the image is left. It is rounded to a step of the sampling.
        staining: strength of matching each class to the staining of its crop.

    Raises:
        InputError: the image differs in size from the label map.
    """
    _check(sampler, image)
    drawn = _drawn_again(sampler, _encode(sampler, image), strength)
    return _matched(sampler, drawn, staining, list(sampler.appearances[0].crops))


def restain(
    sampler: FieldSampler, image: UInt8, strength: float, staining: float, classes: Sequence[int]
) -> UInt8:
    """Stain classes of an image as the sampler's crops of them are; their cells stay.

    The image is drawn again, and the change of its optical density is laid on the image itself.

    Args:
        sampler, image, strength, staining: see `redraw`.
        classes: the classes that are stained. Others stay as they are, but for a border of 2 px.

    Raises:
        InputError: the image differs in size from the label map.
    """
    _check(sampler, image)
    latents = _encode(sampler, image)
    old = _decoder(sampler, latents).decode(Strip(0, latents), 0, sampler.height)
    new = _drawn_again(sampler, latents, strength)
    labels = sampler.labels.read(0, sampler.labels.height)
    transferred = transfer_staining(image, old, new, labels, classes)
    return _matched(sampler, transferred, staining, classes)


def _drawn_again(sampler: FieldSampler, latents: Tensor, strength: float) -> UInt8:
    steps = sampler.sampling.steps
    first = steps - max(1, round(strength * steps))
    time = 1 - first / steps
    noise = sampler.noise(0, sampler.height).sample
    strip = Strip(0, (1 - time) * latents + time * noise)
    for step in _watched(sampler, first):
        strip = sampler.advance(step, strip, 0, sampler.height)
    return _decoder(sampler, strip.sample).decode(strip, 0, sampler.height)


def _matched(sampler: FieldSampler, image: UInt8, staining: float, classes: Sequence[int]) -> UInt8:
    labels = sampler.labels.read(0, sampler.labels.height)
    crops = [crop for label, crop in sampler.appearances[0].crops.items() if label in classes]
    whole = torch.from_numpy(image[None])
    matched: UInt8 = match_staining(whole, labels[None], [crops], staining)[0].numpy()
    return matched


def _watched(sampler: FieldSampler, first: int) -> Iterator[int]:
    """Yield the numbers of the steps from one on; `sampler.watch` hears how far all of them are."""
    watch, steps = sampler.watch, sampler.sampling.steps
    try:
        for step in range(first, steps):
            sampler.watch = lambda done, total, number=step - first: watch(  # type: ignore[misc]
                number * total + done, (steps - first) * total
            )
            yield step
    finally:
        sampler.watch = watch


def _check(sampler: FieldSampler, image: UInt8) -> None:
    height, width = image.shape[:2]
    if (height, width) != (sampler.labels.height, sampler.labels.width):
        raise InputError(
            f"the label map is {sampler.labels.width}×{sampler.labels.height} px, but the image "
            f"is {width}×{height} px: give a map of the image's size"
        )
    if max(height, width) > MAX_EDIT_SIDE:
        raise InputError(
            f"the image is {width}×{height} px: at most {MAX_EDIT_SIDE}×{MAX_EDIT_SIDE} px are "
            "edited at a time; cut a window out of it"
        )


def _encode(sampler: FieldSampler, image: UInt8) -> Tensor:
    """Encode an image to normalized latents (C, h, w), on the CPU."""
    factor = sampler.factor
    missing = (sampler.height * factor - len(image), sampler.width * factor - image.shape[1])
    filled = np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
    with torch.inference_mode(), sampler.computing():
        pixels = to_unit(torch.from_numpy(filled[None]).to(sampler.device))
        return encode_latents(sampler.pipeline.vae, pixels)[0].float().cpu()


def _cells(sampler: FieldSampler, area: NDArray[np.bool_], border: int) -> Tensor:
    """Return how far each latent pixel is painted, 0 to 1 (h, w): it falls in the border."""
    weight = torch.from_numpy(_fading(area, border + sampler.factor))[None, None]
    return functional.avg_pool2d(weight, sampler.factor, ceil_mode=True)[0, 0]


def _decoder(sampler: FieldSampler, latents: Tensor) -> FieldDecoder:
    """Return a decoder whose norms have the statistics of an image's latents."""
    vae = sampler.pipeline.vae
    with torch.inference_mode(), sampler.computing():
        statistics = norm_statistics(vae, to_raw(vae, latents[None].to(sampler.device)))
    return FieldDecoder(sampler, fixed_tensors([statistics], torch.zeros(1, 0, 3)))


def _blended(image: UInt8, new: UInt8, area: NDArray[np.bool_], border: int) -> UInt8:
    """Lay new pixels over an image where `area` is, and fade them out around it.

    The autoencoder shifts colours a little. How much is seen beside the area, and spreads
    smoothly into it.
    """
    weight = _fading(area, border)[..., None]
    ring = ((_fading(area, 2 * border + 8) > 0) & ~area).astype(np.float32)
    width = float(max(4, border))
    shift = cv2.GaussianBlur((image.astype(np.float32) - new) * ring[..., None], (0, 0), width)
    seen = cv2.GaussianBlur(ring, (0, 0), width)
    correction: Float32 = np.asarray(shift / np.maximum(seen, 0.05)[..., None], np.float32)
    laid = image + weight * (new + correction - image)
    blended: UInt8 = np.where(weight > 0, laid.round().clip(0, 255), image).astype(np.uint8)
    return blended


def _fading(area: NDArray[np.bool_], border: int) -> Float32:
    """Return 1 in an area, falling to 0 over a border around it, float32 (h, w)."""
    away = cv2.distanceTransform((~area).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    falling = np.clip(1 - away / (border + 1), 0, 1)
    return np.where(away > border, 0, falling).astype(np.float32)
