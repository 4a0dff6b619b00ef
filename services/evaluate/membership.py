"""Membership inference: whether training images can be told from those of other patients.

An attack gives every real image a score. If the scores of training images are higher than those of
held-out images, the model, or its dataset, tells who was in the training set.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from services.evaluate.coverage import squared_distances
from services.evaluate.data import Material, Pairs, centre, spread
from shared.arrays import Float32, Float64, Int64
from shared.contracts.evaluate import Membership
from shared.diffusion.autoencoder import encode_latents, to_unit
from shared.diffusion.flow import guided
from shared.diffusion.guidance import Guidance
from shared.diffusion.model_store import load_model
from shared.diffusion.precision import autocast
from shared.jobs import Context

FALSE_ALARMS = 0.01
"""Share of held-out images that an attack may take for training images."""

DRAWS = 200
"""Number of bootstrap draws for an interval."""

MAX_SCORED = 500
"""Greatest number of images of a side that the denoiser scores."""

TIME = 0.1
"""Time t at which the denoiser is asked for the noise; the image is at t = 0."""

BATCH = 16


def membership(
    train: Float64, held_out: Float64, groups: tuple[Sequence[str], Sequence[str]], seed: int
) -> Membership:
    """Say how well scores tell training images from held-out ones.

    Args:
        train: score of each training image, (n,); higher: rather a training image.
        held_out: score of each held-out image, (m,).
        groups: patient of each training image, and of each held-out image; intervals come from
            resampled patients.
        seed: seed of the resampling.
    """
    rng = np.random.default_rng(seed)
    sides = [np.unique(np.array(own, np.str_), return_inverse=True)[1] for own in groups]
    counts = [int(numbers.max()) + 1 for numbers in sides]
    found = [
        _figures(train, held_out, *(
            np.bincount(rng.integers(count, size=count), minlength=count)[numbers]
            for count, numbers in zip(counts, sides, strict=True)
        ))
        for _ in range(DRAWS)
    ]  # fmt: skip
    low, high = np.quantile(found, (0.05, 0.95), axis=0).tolist()
    auc, hits = _figures(train, held_out, np.ones(len(train), int), np.ones(len(held_out), int))
    return Membership(
        auc=auc,
        auc_interval=(low[0], high[0]),
        found=hits,
        found_interval=(low[1], high[1]),
        n=(len(train), len(held_out)),
        patients=(counts[0], counts[1]),
    )


def _figures(
    train: Float64, held_out: Float64, weights: Int64, weights_held_out: Int64
) -> tuple[float, float]:
    """Return AUC, and the share of training images above all but 1 % of the held-out ones."""
    order = np.argsort(held_out)
    ordered, mass = held_out[order], np.concatenate([[0], np.cumsum(weights_held_out[order])])
    total = mass[-1]
    below, upto = (mass[np.searchsorted(ordered, train, side)] for side in ("left", "right"))
    auc = float(np.average((below + upto) / 2, weights=weights) / total)
    beaten = upto >= total - int(FALSE_ALARMS * total)
    above = beaten & (below == upto)  # a tie with a held-out image is no hit
    return auc, float(np.average(above, weights=weights))


def patients_of(material: Material) -> tuple[list[str], list[str]] | None:
    """Return the patient of each training and of each test image; slides stand for unknown ones.

    None if membership cannot be measured: the training images are not those of the model, or a
    patient or slide is on both sides.
    """
    patient = material.patients
    sides = [
        [patient[pairs.origins(number)[0][0]] for number in range(len(pairs))]
        for pairs in (material.train, material.test)
    ]
    known = material.real.name == material.model.regions
    seen = {patient[part.slide] for part in material.real.of_split("train")}
    if not known or not set(sides[0]) <= seen or not seen.isdisjoint(sides[1]):
        return None
    return sides[0], sides[1]


def by_neighbours(
    train: Float32,
    test: Float32,
    synthetic: Float32,
    patients: tuple[Sequence[str], Sequence[str]],
    seed: int,
) -> Membership:
    """Attack the images alone: the score is the nearness of the nearest synthetic image.

    Args:
        train, test, synthetic: features (n, dim) of real training and test images, and of the
            dataset.
        patients: patient of each training image, and of each test image.
        seed: seed of the intervals.
    """
    scores = [
        -np.concatenate(
            [np.sqrt(part.min(1)) for _, part in squared_distances(*map(_float64, pair))]
        )
        for pair in ((train, synthetic), (test, synthetic))
    ]
    return membership(scores[0], scores[1], patients, seed)


def _float64(features: NDArray[np.floating]) -> Float64:
    return features.astype(np.float64)


def by_denoiser(material: Material, context: Context, seed: int) -> Membership | None:
    """Attack the model by one call of its denoiser per image, as in SimA.

    The score is the norm of the noise that the denoiser finds in the image itself, at a small
    time and given its label map, with its sign turned: a model finds less in what it has learnt.
    """
    patients = patients_of(material)
    if patients is None:
        return None
    chosen = [spread(len(pairs), MAX_SCORED) for pairs in (material.train, material.test)]
    scores = [
        -noise_norms(material, pairs, numbers, context)
        for pairs, numbers in zip((material.train, material.test), chosen, strict=True)
    ]
    groups = [[own[n] for n in numbers] for own, numbers in zip(patients, chosen, strict=True)]
    return membership(scores[0], scores[1], (groups[0], groups[1]), seed)


@torch.inference_mode()
def noise_norms(
    material: Material, pairs: Pairs, numbers: Sequence[int], context: Context
) -> Float64:
    """Return the root mean square of the noise that the denoiser finds in images, (len(numbers),).

    With x_t = (1 - t) x0 + t ε and v = ε - x0, the noise is ε = x_t + (1 - t) v; x_t is the image.
    """
    loaded = load_model(context.store, material.model.ref, context.device)
    pipeline, size = loaded.pipeline, material.dataset.size
    vae, denoiser = pipeline.vae, pipeline.denoiser
    guidance = Guidance({(True, False): 1.0})
    norms = []
    for start in range(0, len(numbers), BATCH):
        part = [pairs.pair(number) for number in numbers[start : start + BATCH]]
        images = np.stack([centre(image, size) for image, _ in part])
        labels = np.stack([centre(own, size) for _, own in part])
        with autocast(pipeline.device.type, material.model.recipe.precision):
            latents = encode_latents(vae, to_unit(torch.from_numpy(images)).to(context.device))
            encoded = denoiser.encode_branches(
                labels,
                [[] for _ in part],
                guidance.branches,
                lambda crops: encode_latents(vae, crops),
            )
            velocity = guided(denoiser, encoded, guidance)(latents, TIME)
        noise = latents.float() + (1 - TIME) * velocity.float()
        norms.append(noise.square().mean((1, 2, 3)).sqrt().cpu().numpy())
    return np.concatenate(norms).astype(np.float64)
