"""The first picture of the demo: painted label maps as tissue, in several appearances.

Its model is the shipped student. No pixel comes from a patient: the maps are drawn, and the crops
are cut from synthetic images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from heterotissue.recipes import load_recipe
from services.train.warm_start import read_weights, start_denoiser, start_vae, student_of
from shared.arrays import UInt8
from shared.contracts.base import Classes
from shared.contracts.recipe import Recipe
from shared.datasets.samples import draw_crops
from shared.diffusion.autoencoder import make_vae
from shared.diffusion.conditionings import make_denoiser
from shared.diffusion.crops import Crop, CropRule, cropped_labels, move_crop, take_typical_crop
from shared.diffusion.gpu import prepare_denoiser, prepare_vae
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.imaging.augment import density_table, restain
from shared.imaging.sheet import colorize, sheet
from shared.storage import Store

STUDENT, RECIPE = "colon-student", "cpu-small"
MAPS = 6
DENSITIES = ((1.0, 1.0, 1.0), (0.75, 0.7, 0.6), (1.1, 1.2, 1.2), (0.8, 1.1, 1.2))
"""Appearance → factors of the optical density of red, green and blue of its crops."""


def draw_glands(size: int, rng: np.random.Generator) -> UInt8:
    """Draw a label map of wavy discs that do not touch, uint8 (size, size)."""
    y, x = np.mgrid[:size, :size] / size
    labels = np.zeros((size, size), np.uint8)
    margin = np.zeros((size, size), bool)
    for _ in range(60):
        middle, radius = rng.uniform(0, 1, 2), rng.uniform(0.08, 0.26)
        phases, waves = rng.uniform(0, 2 * np.pi, 4), rng.uniform(0, 0.1, 4)
        angle = np.arctan2(y - middle[1], x - middle[0])
        wave = 1 + sum(waves[n] * np.cos((n + 1) * angle + phases[n]) for n in range(4))
        distance = np.hypot(x - middle[0], y - middle[1]) / wave
        if not (margin & (distance < radius + 0.03)).any():
            labels[distance < radius] = 1
            margin |= distance < radius + 0.03
    return labels


def cut_crops(
    image: UInt8, labels: UInt8, maps: Sequence[UInt8], rule: CropRule, rng: np.random.Generator
) -> tuple[list[Crop], list[list[Crop]]]:
    """Cut a crop of each class out of an image, and place it in each of some label maps.

    Args:
        image, labels: uint8 RGB (h, w, 3) and its label map (h, w).
        maps: label maps, uint8 (h, w).
        rule: sides of the crops, and the classes that have some.
        rng: draws sides and places.

    Returns:
        The crops where they were cut, and the crops of each map.
    """
    cut = [
        take_typical_crop(image, labels, label, rule, rng, len(image))
        for label in cropped_labels(labels, rule)
    ]
    crops = [crop for crop in cut if crop is not None]
    moved = [
        [found for crop in crops if (found := move_crop(crop, each, rng)) is not None]
        for each in maps
    ]
    return crops, moved


def student_recipe(store: Store) -> Recipe:
    """Return the recipe of the shipped student: few steps, without guidance."""
    plain = load_recipe(RECIPE)
    denoiser = plain.denoiser.model_copy(update={"student": student_of(store, STUDENT)})
    return plain.model_copy(update={"denoiser": denoiser})


def shipped_student(store: Store) -> tuple[HeteroTissuePipeline, Classes, CropRule]:
    """Make the pipeline of the shipped student, its classes, and the rule of its crops."""
    weights, recipe = read_weights(store, STUDENT), student_recipe(store)
    classes = Classes.of(*weights.classes[1:], exhaustive=True)
    vae = make_vae(recipe.vae)
    denoiser = make_denoiser(recipe.denoiser, recipe.size, classes, vae)
    start_vae(vae, weights)
    start_denoiser(denoiser, weights, classes.names)
    prepare_vae(vae.eval(), recipe.precision)
    prepare_denoiser(denoiser.eval(), recipe.precision)
    pipeline = HeteroTissuePipeline(vae, denoiser, recipe.sampling.model_dump())
    return pipeline, classes, CropRule.of(recipe.denoiser, classes)


def draw_first_picture(store: Store, path: Path, seed: int = 0) -> None:
    """Draw label maps, and below each its image in every appearance, with the crops on the left.

    Args:
        store: any store; the student comes from the package.
        path: the PNG file to write.
        seed: seed of maps, crops and images.
    """
    pipeline, classes, rule = shipped_student(store)
    size, rng = load_recipe(RECIPE).size, np.random.default_rng(seed)
    maps = np.stack([draw_glands(size, rng) for _ in range(MAPS)])
    bases = pipeline(maps, [[]] * MAPS, range(MAPS), use_crops=False)
    rows = [[np.full((size, size, 3), 250, np.uint8)]]
    rows[0] += [colorize(labels, classes.colors) for labels in maps]
    for number, densities in enumerate(DENSITIES):
        source = restain(bases[number], density_table(densities))
        crops, moved = cut_crops(source, maps[number], list(maps), rule, rng)
        rows.append([draw_crops(crops, size), *pipeline(maps, moved, range(MAPS))])
    page = sheet(rows, ["label maps", *[""] * len(DENSITIES)], ["crops", "synthetic images"])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(page).save(path)
