"""Conditioning, flow matching and guidance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shared.diffusion.condition import adapt_first_layer, condition_tensor, condition_width
from shared.diffusion.crops import Crop, CropRule, complexity, crop_side, move_crop, place
from shared.diffusion.denoiser import Denoiser
from shared.diffusion.flow import draw_noise, guided, image_seed, sample_flow


def small_denoiser(classes: int = 3) -> Denoiser:
    torch.manual_seed(0)
    denoiser = Denoiser(
        classes=classes, latent_channels=4, factor=4, channels=(32, 32), layers=1,
        attention=(False, True), condition_channels=16,
    )  # fmt: skip
    return denoiser.eval()


def test_condition_is_map_then_canvases() -> None:
    labels = np.zeros((2, 8, 8), np.uint8)
    labels[0, :, 4:] = 2
    pixels = np.full((3, 3, 3), 255, np.uint8)
    crops = [[Crop(2, 4, 1, pixels)], []]
    out = condition_tensor(labels, crops, 3)
    assert out.shape == (2, condition_width(3), 8, 8)
    assert torch.equal(out[:, :3].argmax(1), torch.from_numpy(labels).long())
    canvas = out[0, 3 + 3 : 3 + 6]
    assert (canvas[:, 1:4, 4:7] == 1).all()
    assert canvas.abs().sum() == 27
    assert out[1, 3:].abs().sum() == 0


def test_dropped_conditions_are_zero() -> None:
    labels = np.ones((2, 8, 8), np.uint8)
    crops = [[Crop(1, 0, 0, np.full((2, 2, 3), 200, np.uint8))]] * 2
    out = condition_tensor(labels, crops, 3, use_map=[False, True], use_crops=[True, False])
    assert out[0, :3].abs().sum() == 0
    assert out[0, 3:].abs().sum() > 0
    assert out[1, :3].sum() == 64
    assert out[1, 3:].abs().sum() == 0


def test_crop_side_grows_with_complexity_within_the_papers_range() -> None:
    rule, rng = CropRule(), np.random.default_rng(0)
    flat = np.mean([crop_side(512, 0.0, rule, rng) for _ in range(500)])
    busy = np.mean([crop_side(512, 1.0, rule, rng) for _ in range(500)])
    sides = [crop_side(512, score, rule, rng) for score in np.linspace(0, 1, 500)]
    assert busy > 1.5 * flat
    assert min(sides) >= 50
    assert max(sides) <= 200


def test_complexity_is_zero_for_flat_and_one_for_all_greys() -> None:
    mask = np.ones((64, 64), bool)
    assert complexity(np.full((64, 64, 3), 90, np.uint8), mask) == 0
    greys = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[:, None], 64, 1)
    assert complexity(np.stack([greys] * 3, -1), mask) == pytest.approx(1)
    assert complexity(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), bool)) == 0


def test_crops_are_placed_where_their_class_is() -> None:
    labels = np.ones((64, 64), np.uint8)
    labels[40:60, 10:30] = 2
    rng = np.random.default_rng(0)
    spot = place(labels, 2, 16, rng)
    assert spot is not None
    x, y = spot
    assert (labels[y : y + 16, x : x + 16] == 2).all()
    assert place(labels, 5, 16, rng) is None
    moved = move_crop(Crop(2, 0, 0, np.zeros((16, 16, 3), np.uint8)), labels, rng)
    assert moved is not None
    assert 10 <= moved.x <= 14


def test_warm_started_classes_keep_their_weights_by_name() -> None:
    source = ["background", "a", "b"]
    weight = torch.randn(5, condition_width(3), 3, 3)
    target = ["background", "b", "new", "a"]
    adapted = adapt_first_layer(weight, source, target)
    assert adapted.shape == (5, condition_width(4), 3, 3)
    assert torch.equal(adapted[:, 1], weight[:, 2])
    assert torch.equal(adapted[:, 3], weight[:, 1])
    assert torch.allclose(adapted[:, 2], weight[:, 1:3].mean(1))
    assert torch.equal(adapted[:, 4:7], weight[:, 6:9])
    assert torch.equal(adapt_first_layer(weight, source, source), weight)


def test_the_sampler_solves_a_known_flow() -> None:
    # v = x/t - data/t carries noise to `data` along straight lines.
    data = torch.tensor([3.0, -2.0]).view(2, 1, 1, 1)
    noise = draw_noise([1, 2], (1, 1, 1))

    def velocity(sample: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return (sample - data) / times.view(-1, 1, 1, 1)

    for steps in (1, 2, 20):
        assert torch.allclose(sample_flow(velocity, noise, steps), data, atol=1e-5)


def test_adams_bashforth_is_of_second_order() -> None:
    noise = torch.ones(1, 1, 1, 1)
    exact = float(np.exp(-1))
    errors = [abs(float(sample_flow(lambda x, t: x, noise, steps)) - exact) for steps in (20, 40)]
    assert errors[1] < errors[0] / 3.4


def test_noise_follows_from_the_image_seed_alone() -> None:
    shape = (2, 3, 3)
    assert torch.equal(draw_noise([5, 6, 7], shape)[2], draw_noise([7], shape)[0])
    assert image_seed(0, 1) != image_seed(0, 2) != image_seed(1, 1)


def test_guidance_weighs_map_and_crops_apart() -> None:
    denoiser = small_denoiser()
    both, map_only, neither = (torch.randn(2, 16, 4, 4) for _ in range(3))
    x, t = torch.randn(2, 4, 4, 4), torch.full((2,), 0.5)
    with torch.no_grad():
        parts = [denoiser(x, t, encoded) for encoded in (both, map_only, neither)]
        for g_map, g_crops in ((1.0, 1.0), (1.5, 1.5), (2.0, 1.2), (1.0, 0.0), (0.0, 0.0)):
            expected = parts[2] + g_map * (parts[1] - parts[2]) + g_crops * (parts[0] - parts[1])
            made = guided(denoiser, both, map_only, neither, g_map, g_crops)(x, t)
            assert torch.allclose(made, expected, atol=1e-5)


def test_every_row_may_have_its_own_time() -> None:
    denoiser = small_denoiser()
    x, encoded = torch.randn(2, 4, 4, 4), torch.randn(2, 16, 4, 4)
    with torch.no_grad():
        mixed = denoiser(x, torch.tensor([0.2, 0.9]), encoded)
        alone = denoiser(x[1:], torch.tensor([0.9]), encoded[1:])
    assert torch.allclose(mixed[1:], alone, atol=1e-5)
