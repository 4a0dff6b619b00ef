"""What a training minimizes: of autoencoders, of what decodes, and of students."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from services.train.data import Batch, Batches
from services.train.objectives import DecoderObjective, StudentObjective, VaeObjective
from shared.contracts.recipe import DenoiserRecipe, StudentRecipe, VaeRecipe
from shared.contracts.sampling import GuidanceScale
from shared.diffusion.autoencoder import make_vae
from shared.diffusion.conditionings import make_denoiser
from shared.diffusion.denoiser import Denoiser
from shared.imaging.region_sets import RegionIndex
from shared.storage import DirectoryStore
from tests.region_sets import make_region_set
from tests.toy_training import RECIPE


def test_an_autoencoder_decodes_noisy_latents_and_first_channels_alone_where_asked() -> None:
    recipe = VaeRecipe(architecture="dc", channels=(16, 32), latent_channels=8)
    vae, seeds = make_vae(recipe), range(64)
    asked = recipe.model_copy(update={"noise": 0.5, "ordered": 0.5, "halved": 0.25})
    latents = torch.ones(len(seeds), 8, 4, 4)
    plain, trained = (VaeObjective(vae, each, "cpu") for each in (recipe, asked))
    assert (plain._kept(latents, seeds) == 1).all()
    assert plain._noisy(latents, seeds) is latents
    kept = trained._kept(latents, seeds).flatten(1)
    assert {int(row.sum()) for row in kept} == {1, 2, 4, 6, 8}
    assert (kept.diff(dim=1) <= 0).all()
    spread = (trained._noisy(latents, seeds) - latents).flatten(1).std(1)
    assert 4 < (spread == 0).sum() < 28
    assert 0.3 < spread.max() < 0.6
    images = np.zeros((2, 32, 32, 3), np.uint8)
    batch = Batch(images, images[..., 0], [[], []], [True] * 2, [True] * 2, ["a", "b"])
    trained.loss(batch, [1, 2], 0)["loss"].backward()
    assert all(weights.grad is not None for weights in vae.parameters())


@pytest.mark.parametrize("architecture", ["kl", "dc"])
def test_of_either_autoencoder_what_decodes_learns_alone(architecture: str) -> None:
    vae = make_vae(RECIPE.vae.model_copy(update={"architecture": architecture}))
    images = np.random.default_rng(0).integers(256, size=(2, 32, 32, 3), dtype=np.uint8)
    batch = Batch(images, images[..., 0], [[], []], [True] * 2, [True] * 2, ["a", "b"])
    objective = DecoderObjective(vae, None, "cpu")
    objective.loss(batch, [0, 1], 0)["loss"].backward()  # type: ignore[no-untyped-call]
    learnt = {name for name, parameter in vae.named_parameters() if parameter.grad is not None}
    decodes = ("decoder.", "post_quant_conv.")
    assert learnt == {name for name, _ in vae.named_parameters() if name.startswith(decodes)}
    found = [float(objective.loss(batch, [0, seed], 0)["psnr"]) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]  # the noise that it learns to bear is of the seeds


def test_a_student_with_as_many_steps_as_its_teacher_has_nothing_to_learn(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    record = make_region_set(store)
    batch = Batches(RegionIndex(store, record, "train"), 32, DenoiserRecipe(), (0,)).draw(0, 4)
    torch.manual_seed(0)
    vae = make_vae(RECIPE.vae)
    denoiser, other = (make_denoiser(RECIPE.denoiser, 32, record.classes, vae) for _ in range(2))

    def loss(teacher: Denoiser, teacher_steps: int, step: int = 0) -> float:
        unguided = GuidanceScale(guidance_map=1, guidance_crops=1)
        recipe = StudentRecipe(sampling_steps=8, teacher_steps=teacher_steps, guidance=unguided)
        objective = StudentObjective(denoiser, teacher, vae, recipe, "cpu")
        return float(objective.loss(batch, [5, 6, 7, 8], step)["loss"].detach())

    assert loss(copy.deepcopy(denoiser), 1) < 1e-10
    assert loss(copy.deepcopy(denoiser), 1, step=13) < 1e-10
    assert loss(copy.deepcopy(denoiser), 4) > 1e-9
    assert loss(other, 1) > 1e-3
