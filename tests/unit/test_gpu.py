"""Networks on a GPU, where there is one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shared.contracts.base import Classes
from shared.contracts.recipe import DenoiserRecipe, VaeRecipe
from shared.contracts.sampling import Sampling
from shared.diffusion.autoencoder import make_vae
from shared.diffusion.conditionings import make_denoiser
from shared.diffusion.crops import Crop
from shared.diffusion.gpu import Captured, prepare_denoiser, prepare_vae, uncaptured
from shared.diffusion.pipeline import HeteroTissuePipeline

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")

CLASSES = Classes.of("stroma", "tumor")
SIDE = 32


def small(conditioning: str) -> HeteroTissuePipeline:
    torch.manual_seed(0)
    vae = make_vae(VaeRecipe(channels=(8, 16, 16), latent_channels=4))
    recipe = DenoiserRecipe.model_validate(
        {"conditioning": conditioning, "channels": (32, 32), "attention": (False, True),
         "condition_channels": 16}
    )  # fmt: skip
    return HeteroTissuePipeline(vae, make_denoiser(recipe, SIDE, CLASSES, vae).eval()).to("cuda")


def request(images: int) -> tuple[np.ndarray, list[list[Crop]], list[int]]:  # type: ignore[type-arg]
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=(images, SIDE, SIDE), dtype=np.uint8)
    crops = [
        [Crop(1, 0, 0, rng.integers(256, size=(8, 8, 3), dtype=np.uint8))] for _ in range(images)
    ]
    return labels, crops, list(range(images))


@pytest.mark.parametrize("conditioning", ["concat", "regional"])
@pytest.mark.parametrize("images", [1, 3, 80])
def test_graphs_make_the_images_that_the_kernels_make(conditioning: str, images: int) -> None:
    plain = small(conditioning)
    captured = HeteroTissuePipeline(copy.deepcopy(plain.vae), copy.deepcopy(plain.denoiser))
    prepare_vae(captured.vae, "fp32")
    prepare_denoiser(captured.denoiser, "fp32")

    expected = plain(*request(images), Sampling(steps=4))
    for _ in range(2):  # the second time, from graphs that are there
        found = captured(*request(images), Sampling(steps=4))
        assert np.abs(found.astype(int) - expected).max() <= 2


def test_bf16_weights_make_about_the_images_of_fp32() -> None:
    plain = small("regional")
    half = HeteroTissuePipeline(copy.deepcopy(plain.vae), copy.deepcopy(plain.denoiser))
    prepare_vae(half.vae, "bf16")
    prepare_denoiser(half.denoiser, "bf16")

    expected = plain(*request(3), Sampling(steps=4))
    found = half(*request(3), Sampling(steps=4), precision="bf16")

    assert np.abs(found.astype(int) - expected).mean() < 4


def test_a_graph_keeps_no_answer_of_the_request_before() -> None:
    denoiser = small("regional").denoiser
    prepare_denoiser(denoiser, "fp32")
    assert isinstance(denoiser.forward, Captured)
    labels, crops, _ = request(2)
    encoded = denoiser.encode_branches(
        labels, crops, [(True, True)], lambda images: images[:, :1, ::4, ::4].expand(-1, 4, -1, -1)
    )
    sample, time = torch.randn(2, 4, 8, 8, device="cuda"), torch.ones(2, device="cuda")

    first = denoiser(sample, time, encoded)
    kept = first.clone()
    other = denoiser(-sample, time, encoded)

    assert torch.equal(first, kept)
    assert not torch.equal(first, other)


def test_operations_are_counted_without_graphs() -> None:
    pipeline = small("concat")
    prepare_denoiser(pipeline.denoiser, "fp32")
    pipeline(*request(2), Sampling(steps=1))

    with FlopCounterMode(display=False) as counter, uncaptured(pipeline.denoiser):
        pipeline(*request(2), Sampling(steps=1))

    assert "convolution" in str(counter.get_flop_counts()["Global"])
    assert isinstance(pipeline.denoiser.forward, Captured)
