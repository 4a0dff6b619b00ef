"""Flow matching, noise, guidance, staining and precision."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from shared.contracts.sampling import Sampling
from shared.diffusion.autoencoder import encode_latents
from shared.diffusion.conditionings import CONDITIONINGS
from shared.diffusion.crops import Crop
from shared.diffusion.flow import draw_noise, draw_times, guided, sample_flow
from shared.diffusion.guidance import Guidance
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.diffusion.precision import autocast, cast_weights
from shared.diffusion.staining import match_staining
from shared.seeds import image_seed
from tests.denoisers import SIDE, encoded, noise_crop, small_denoiser, small_vae, two_halves


def test_the_sampler_solves_a_known_flow() -> None:
    # v = x/t - data/t carries noise to `data` along straight lines.
    data = torch.tensor([3.0, -2.0]).view(2, 1, 1, 1)
    noise = draw_noise([1, 2], (1, 1, 1))

    def velocity(sample: torch.Tensor, time: float) -> torch.Tensor:
        return (sample - data) / time

    for steps in (1, 2, 20):
        assert torch.allclose(sample_flow(velocity, noise, steps), data, atol=1e-5)


def test_adams_bashforth_is_of_second_order() -> None:
    noise = torch.ones(1, 1, 1, 1)
    exact = float(np.exp(-1))
    errors = [abs(float(sample_flow(lambda x, t: x, noise, steps)) - exact) for steps in (20, 40)]
    assert errors[1] < errors[0] / 3.4


def test_training_visits_the_beginning_and_the_end_of_the_way() -> None:
    times = draw_times(range(4000))
    assert times.min() > 0
    assert times.max() < 1
    assert (times > 0.9).float().mean() > 0.04
    assert (times < 0.1).float().mean() > 0.04
    assert ((times > 0.25) & (times < 0.75)).float().mean() > 0.55
    assert torch.equal(draw_times([7, 8])[1:], draw_times([8]))


def test_noise_follows_from_the_image_seed_alone() -> None:
    shape = (2, 3, 3)
    assert torch.equal(draw_noise([5, 6, 7], shape)[2], draw_noise([7], shape)[0])
    assert image_seed(0, 1) != image_seed(0, 2) != image_seed(1, 1)


def crop_of(label: int, level: int) -> Crop:
    return Crop(label, 0, 0, np.full((16, 16, 3), level, np.uint8))


def densities(images: torch.Tensor) -> torch.Tensor:
    """Mean optical density of the halves' middles, where no border fades: (2, 3)."""
    density = -((images.double() + 1) / 256).log()
    return torch.stack([density[0, :, :12].mean((0, 1)), density[0, :, 20:].mean((0, 1))])


def test_regions_are_stained_as_their_crops() -> None:
    column = torch.randint(90, 220, (1, SIDE, 1, 3), generator=torch.Generator().manual_seed(0))
    column[:, 28:] = 255  # glass
    images = column.expand(1, SIDE, SIDE, 3).to(torch.uint8)
    labels = two_halves()
    crops = [[crop_of(1, 110), crop_of(1, 130), crop_of(2, 180)]]
    own = densities(images)
    levels = [torch.tensor([111.0, 131.0]), torch.tensor([181.0])]
    wanted = torch.stack([-(level / 256).log().mean() for level in levels])[:, None]
    assert (own[0] < wanted[0]).all()
    assert (own[1] > wanted[1]).all()
    for strength in (0.5, 1.0):
        made = match_staining(images, labels, crops, strength)
        assert made.dtype == torch.uint8
        torch.testing.assert_close(
            densities(made), own * (wanted.double() / own) ** strength, rtol=0.02, atol=0
        )
        assert (made[:, 28:] == 255).all()
    assert torch.equal(match_staining(images, labels, crops, 0), images)
    assert torch.equal(match_staining(images, labels, [[]], 1), images)
    half = match_staining(images, labels, [[crop_of(2, 180)]], 1)
    assert torch.equal(half[:, :, :14], images[:, :, :14])
    assert not torch.equal(half[:, :, 18:], images[:, :, 18:])


@pytest.mark.parametrize(("use_map", "use_crops"), [(True, True), (True, False), (False, True)])
def test_without_map_or_crops_no_region_is_stained(use_map: bool, use_crops: bool) -> None:
    pipeline = HeteroTissuePipeline(small_vae(), small_denoiser("regional"))
    crops = [[crop_of(1, 20), crop_of(2, 240)]]
    plain, stained = (
        pipeline(
            two_halves(),
            crops,
            [0],
            Sampling(steps=2, staining=each),
            use_map=use_map,
            use_crops=use_crops,
        )
        for each in (0, 1)
    )
    assert np.array_equal(plain, stained) == (not (use_map and use_crops))


def test_staining_is_scaled_twofold_at_most() -> None:
    images = torch.full((2, SIDE, SIDE, 3), 127, dtype=torch.uint8)
    crops = [[crop_of(1, 0)], [crop_of(1, 255)]]
    made = match_staining(images, two_halves().repeat(2, 0), crops, 1)
    assert made[0, 0, 0].tolist() == [63] * 3  # half the light, twice
    assert made[1, 0, 0].tolist() == [180] * 3  # its root


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_guidance_weighs_map_and_crops_apart(conditioning: str) -> None:
    denoiser = small_denoiser(conditioning)
    labels = two_halves().repeat(2, 0)
    crops = [[noise_crop(1, 0), noise_crop(2, 1)], [noise_crop(2, 2)]]
    vae, x, t = small_vae(), torch.randn(2, 4, 8, 8), torch.full((2,), 0.5)
    with torch.no_grad():
        both, crops_only, neither = (
            denoiser(x, t, encoded(denoiser, labels, crops, use_map, use_crops))
            for use_map, use_crops in ((True, True), (False, True), (False, False))
        )
        for g_map, g_crops in ((1.0, 1.0), (1.5, 1.5), (2.0, 1.2), (1.0, 0.0), (0.0, 0.0)):
            expected = neither + g_crops * (crops_only - neither) + g_map * (both - crops_only)
            weights = Guidance.of(g_map, g_crops).branches
            condition = denoiser.lay_out(
                np.tile(labels, (len(weights), 1, 1)),
                crops * len(weights),
                [given for given, _ in weights for _ in range(2)],
                [given for _, given in weights for _ in range(2)],
                lambda images: encode_latents(vae, images),
            )
            rows = denoiser.encode_condition(condition)
            made = guided(denoiser, rows, Guidance.of(g_map, g_crops))(x, 0.5)
            assert torch.allclose(made, expected, atol=1e-4)


def test_predictions_without_weight_are_not_computed() -> None:
    assert Guidance.of(1, 1).weights == {(True, True): 1}
    assert Guidance.of(1.5, 1.5).weights == {(True, True): 1.5, (False, False): -0.5}
    by_map = Guidance.of(1.5, 1.5, use_crops=False)
    assert by_map.weights == {(True, False): 1.5, (False, False): -0.5}
    by_crops = Guidance.of(1.5, 2, use_map=False)
    assert by_crops.weights == {(False, True): 2, (False, False): -1}
    assert Guidance.of(3, 2, use_map=False, use_crops=False).weights == {(False, False): 1}


def test_outside_its_interval_guidance_costs_and_changes_nothing() -> None:
    guidance = Guidance.of(2, 1.5, low=0.25, high=0.75)
    assert guidance.branches == [(True, True), (False, True), (False, False)]
    counts = [len(guidance.weights_at(time)) for time in (1, 0.76, 0.75, 0.25, 0.2)]
    assert counts == [1, 1, 3, 3, 1]
    assert guidance.evaluations(4) == 1 + 3 * 3
    denoiser = small_denoiser("regional")
    labels, crops = two_halves(), [[noise_crop(1, 0), noise_crop(2, 1)]]
    x, encode = torch.randn(1, 4, 8, 8), lambda images: encode_latents(small_vae(), images)
    with torch.no_grad():
        rows = denoiser.encode_branches(labels, crops, guidance.branches, encode)
        alone = denoiser.encode_branches(labels, crops, [(True, True)], encode)
        velocity = guided(denoiser, rows, guidance)
        plain = guided(denoiser, alone, Guidance.of(1, 1))
        torch.testing.assert_close(velocity(x, 0.9), plain(x, 0.9))
        assert not torch.allclose(velocity(x, 0.5), plain(x, 0.5))


@pytest.mark.parametrize(
    ("precision", "known", "expected"),
    [
        ("bf16", True, torch.bfloat16),
        ("bf16", False, torch.float32),  # bf16 would take a CPU that lacks it many times as long
        ("fp32", True, torch.float32),
    ],
)
def test_a_cpu_computes_in_bf16_only_where_it_knows_it(
    precision: str, known: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: known)
    with autocast("cpu", precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected


@pytest.mark.parametrize("conditioning", ["concat", "regional"])
@pytest.mark.parametrize("known", [True, False])
def test_weights_that_are_cast_once_compute_the_same_bits(
    conditioning: str, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: known)
    denoiser = small_denoiser(conditioning)
    cast = copy.deepcopy(denoiser)
    cast_weights(cast.unet, "cpu", "bf16")
    kinds = {parameter.dtype for parameter in cast.unet.parameters()}
    assert kinds == ({torch.bfloat16, torch.float32} if known else {torch.float32})
    labels = np.ones((2, SIDE, SIDE), np.uint8)
    crops = [[Crop(1, 0, 0, np.full((8, 8, 3), 90, np.uint8))], []]
    with torch.inference_mode(), autocast("cpu", "bf16"):
        encoded = denoiser.encode_branches(
            labels, crops, [(True, True)], lambda images: encode_latents(small_vae(), images)
        )
        sample = torch.randn(2, 4, SIDE // 4, SIDE // 4)
        time = torch.tensor([0.3, 0.7])
        assert torch.equal(cast(sample, time, encoded), denoiser(sample, time, encoded))
