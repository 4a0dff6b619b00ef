"""What a training draws: batches, crops, views, and the losses on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch

from services.train.data import Batches
from services.train.latents import encode_views
from services.train.objectives import (
    staining_loss,
)
from shared.contracts.recipe import DenoiserRecipe, VaeRecipe
from shared.diffusion.autoencoder import encode_latents, make_vae, to_unit
from shared.imaging.augment import symmetry
from shared.imaging.region_sets import RegionIndex
from shared.storage import DirectoryStore
from tests.region_sets import make_region_set


def test_the_staining_loss_minds_colours_and_not_what_is_finer_than_its_blocks() -> None:
    tissue = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    assert staining_loss(tissue, tissue) == 0
    assert staining_loss(tissue.flip(3).roll(16, 3), tissue) < 1e-6  # moved within each block
    redder = tissue - torch.tensor([0.0, 0.2, 0.0]).view(3, 1, 1)
    assert staining_loss(redder, tissue) > 0.02
    assert torch.isfinite(staining_loss(torch.full_like(tissue, -3), tissue))


def test_batches_depend_on_seed_step_and_rank_alone(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    index = RegionIndex(store, make_region_set(store), "train")
    batches = Batches(index, 32, DenoiserRecipe(), (1, 2))
    first, again = batches.draw(5, 4), Batches(index, 32, DenoiserRecipe(), (1, 2)).draw(5, 4)
    assert np.array_equal(first.images, again.images)
    assert first.keys == again.keys
    assert not np.array_equal(first.images, batches.draw(6, 4).images)
    halves = [batches.draw(5, 2, rank).keys for rank in (0, 1)]
    assert halves[0] + halves[1] == first.keys
    for ahead in (1, 4):
        streamed = list(batches.stream(3, 6, 4, 0, ahead))
        assert [step for step, _ in streamed] == [3, 4, 5]
        assert streamed[2][1].keys == first.keys


def test_batches_never_see_the_test_split(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    index = RegionIndex(store, make_region_set(store), "train")
    batches = Batches(index, 32, None, (0,))
    seen = {key.split("_")[0] for step in range(20) for key in batches.draw(step, 4).keys}
    assert seen == {"slide-a", "slide-b"}


def test_the_papers_crops_are_cut_from_their_own_class_in_place(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    index = RegionIndex(store, make_region_set(store), "train")
    batch = Batches(index, 64, DenoiserRecipe(crop_augment=False), (0,)).draw(0, 6)
    for image, labels, crops in zip(batch.images, batch.labels, batch.crops, strict=True):
        assert {crop.label for crop in crops} == set(np.unique(labels)) - {0}
        for crop in crops:
            side = crop.pixels.shape[0]
            assert 50 / 512 * 64 - 1 <= side <= 200 / 512 * 64 + 1
            window = np.s_[crop.y : crop.y + side, crop.x : crop.x + side]
            assert np.array_equal(image[window], crop.pixels)
            assert (labels[window] == crop.label).mean() > 0.5


def test_augmented_crops_carry_staining_and_no_layout(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    index = RegionIndex(store, make_region_set(store), "train")
    batch = Batches(index, 64, DenoiserRecipe(), (0,)).draw(0, 16)
    copied = 0
    for image, labels, crops in zip(batch.images, batch.labels, batch.crops, strict=True):
        for crop in crops:
            side = crop.pixels.shape[0]
            window = np.s_[crop.y : crop.y + side, crop.x : crop.x + side]
            copied += np.array_equal(image[window], crop.pixels)
            own = image[labels == crop.label].mean(0)
            assert np.abs(crop.pixels.mean((0, 1)) - own).max() < 40
    assert copied == 0


def test_images_without_crops_keep_their_own_staining(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    index = RegionIndex(store, make_region_set(store), "train")
    recipe = DenoiserRecipe(drop_crops=0.5, drop_both=0.2, drop_map=0.1)
    batch = Batches(index, 64, recipe, (0,)).draw(0, 64)
    known = {index[i].key: {symmetry(index[i].image, w).tobytes():
                            symmetry(index[i].labels, w).tobytes() for w in range(8)}
             for i in range(len(index))}  # fmt: skip
    kept = [image.tobytes() in known[key]
            for image, key in zip(batch.images, batch.keys, strict=True)]  # fmt: skip
    for image, labels, key, as_it_is in zip(
        batch.images, batch.labels, batch.keys, kept, strict=True
    ):  # the map is turned as its image is
        turns = known[key]
        assert not as_it_is or turns[image.tobytes()] == labels.tobytes()
        assert labels.tobytes() in turns.values()
    assert kept == [not used for used in batch.use_crops]
    assert 0.5 < kept.count(True) / 64 < 0.9
    assert any(not m for m in batch.use_map)


def test_kept_latents_are_those_of_the_images_drawn(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    index = RegionIndex(store, make_region_set(store), "train")
    vae = make_vae(VaeRecipe(channels=(16, 16), latent_channels=4))
    recipe = DenoiserRecipe(views=12)
    fresh = Batches(index, 32, recipe, (0,))
    data = encode_views(vae, fresh, (0, len(index)), "cpu", "fp32", lambda *_: None)
    kept = safetensors.numpy.load(data)["latents"]
    assert kept.shape == (len(index), 12, 4, 16, 16)
    batch = Batches(index, 32, recipe, (0,), kept).draw(3, 32)
    assert batch.latents is not None
    with torch.no_grad():
        expected = encode_latents(vae, to_unit(torch.from_numpy(batch.images)))
    assert np.allclose(batch.latents, expected.numpy(), atol=2e-3)
    assert np.array_equal(batch.images, fresh.draw(3, 32).images)
    own = {image.tobytes() for i in range(len(index)) for image in fresh.view_images(i)[:8]}
    plain = [i.tobytes() for i, used in zip(batch.images, batch.use_crops, strict=True) if not used]
    assert plain
    assert own.issuperset(plain)


def test_the_eight_symmetries_differ() -> None:
    array = np.arange(9, dtype=np.uint8).reshape(3, 3)
    assert len({symmetry(array, which).tobytes() for which in range(8)}) == 8
