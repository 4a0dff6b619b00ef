"""Conditioning by maps and crops: what each reaches, and what warm starts keep of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from shared.contracts.base import Classes
from shared.diffusion import regional
from shared.diffusion.autoencoder import encode_latents
from shared.diffusion.concat import adapt_first_layer, condition_tensor, condition_width
from shared.diffusion.conditionings import CONDITIONINGS
from shared.diffusion.crops import (
    Crop,
    CropRule,
    complexity,
    crop_side,
    move_crop,
    place,
    take_crop,
    take_typical_crop,
)
from shared.diffusion.flow import draw_noise, draw_times, flow_loss, guided, sample_flow
from shared.diffusion.guidance import Guidance
from shared.diffusion.regional import RegionalDenoiser
from shared.seeds import image_seed
from tests.denoisers import (
    CLASSES,
    SIDE,
    encoded,
    noise_crop,
    small_denoiser,
    small_vae,
    two_halves,
)


def test_concat_condition_is_map_then_canvases() -> None:
    labels = np.zeros((2, 8, 8), np.uint8)
    labels[0, :, 4:] = 2
    pixels = np.full((3, 3, 3), 255, np.uint8)
    crops = [[Crop(2, 4, 1, pixels)], []]
    every = [True, True]
    out = condition_tensor(labels, crops, 3, first=1, use_map=every, use_crops=every)
    assert out.shape == (2, condition_width(3, 1), 8, 8)
    assert torch.equal(out[:, :3].argmax(1), torch.from_numpy(labels).long())
    canvas = out[0, 3 + 3 : 3 + 6]
    assert (canvas[:, 1:4, 4:7] == 1).all()
    assert canvas.abs().sum() == 27
    assert out[1, 3:].abs().sum() == 0
    exhaustive = condition_tensor(
        labels, [[Crop(0, 0, 0, pixels)], []], 3, first=0, use_map=every, use_crops=every
    )
    assert exhaustive[0, 3:6].sum() == 27


def test_dropped_conditions_are_zero() -> None:
    labels = np.ones((2, 8, 8), np.uint8)
    crops = [[Crop(1, 0, 0, np.full((2, 2, 3), 200, np.uint8))]] * 2
    out = condition_tensor(
        labels, crops, 3, first=1, use_map=[False, True], use_crops=[True, False]
    )
    assert out[0, :3].abs().sum() == 0
    assert out[0, 3:].abs().sum() > 0
    assert out[1, :3].sum() == 64
    assert out[1, 3:].abs().sum() == 0


def test_a_regional_crop_reaches_the_places_of_its_class_alone() -> None:
    denoiser = small_denoiser("regional")
    labels = two_halves()
    crops = [[noise_crop(1, 0), noise_crop(2, 0)]]
    changed = [[noise_crop(1, 0), noise_crop(2, 9)]]
    before, after = (encoded(denoiser, labels, each) for each in (crops, changed))
    moved = (before["features"] - after["features"]).abs().sum(1)[0]
    middle = moved.shape[1] // 2
    assert moved[:, :middle].max() == 0
    assert moved[:, middle:].min() > 0
    places = before["bias_16"][0, 0].view(4, 4, -1)  # the lower level of two, 4 × 4
    tokens = places.shape[-1] // 2
    assert (places[:, :2, 1 + tokens :] < -1e3).all()
    assert (places[:, 2:, 1 : 1 + tokens] < -1e3).all()
    assert (places[:, 2:, 1 + tokens :] > -1e3).any(-1).all()


def test_regional_crops_carry_no_layout_and_their_order_does_not_matter() -> None:
    denoiser = small_denoiser("regional")
    labels = two_halves()
    one, other = noise_crop(1, 0), noise_crop(2, 1)
    moved = Crop(1, 5, 7, one.pixels)
    x, t = torch.randn(1, 4, 8, 8), torch.full((1,), 0.4)
    with torch.no_grad():
        first = denoiser(x, t, encoded(denoiser, labels, [[one, other]]))
        again = denoiser(x, t, encoded(denoiser, labels, [[other, moved]]))
        more = denoiser(x, t, encoded(denoiser, labels, [[one, other, noise_crop(1, 5)]]))
    assert torch.allclose(first, again, atol=1e-5)
    assert not torch.allclose(first, more, atol=1e-3)


def test_padding_of_a_batch_changes_no_row() -> None:
    denoiser = small_denoiser("regional")
    labels = two_halves().repeat(2, 0)
    alone = encoded(denoiser, labels[:1], [[noise_crop(1, 0, 8)]])
    padded = encoded(
        denoiser, labels, [[noise_crop(1, 0, 8)], [noise_crop(1, 3, 24), noise_crop(2, 4, 24)]]
    )
    x, t = torch.randn(1, 4, 8, 8), torch.full((1,), 0.4)
    with torch.no_grad():
        one = denoiser(x, t, alone)
        two = denoiser(x.repeat(2, 1, 1, 1), t.repeat(2), padded)[:1]
    assert torch.allclose(one, two, atol=2e-2)


@pytest.mark.parametrize("conditioning", ["regional", "embedding"])
def test_what_is_kept_for_all_steps_changes_none(
    conditioning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = small_denoiser(conditioning)
    assert isinstance(denoiser, RegionalDenoiser)
    parts = [
        encoded(denoiser, two_halves(), [crops])
        for crops in ([noise_crop(1, 0)], [noise_crop(1, 1), noise_crop(2, 2, 24)])
    ]
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([0.4, 0.7])
    with torch.no_grad():
        plain = denoiser.join(parts)
        kept = denoiser.join([denoiser.keep(part) for part in parts])
        assert len(kept) == len(plain) + 1 + 2 * 4  # the stem; keys and values of four layers
        made = denoiser(x, t, plain)
        assert torch.allclose(denoiser(x, t, kept), made, atol=1e-5)
        altered = {n: v + 1 if n.startswith("kept_") else v for n, v in kept.items()}
        assert not torch.allclose(denoiser(x, t, altered), made, atol=1e-2)
        assert denoiser.join([parts[0] | denoiser.keep(parts[0]), parts[1]]).keys() == plain.keys()
        stem, whole = denoiser.unet.conv_in, torch.cat([x, plain["features"]], 1)
        split = stem(torch.cat([x, stem.of_features(plain["features"])], 1))
        assert torch.allclose(split, torch.nn.Conv2d.forward(stem, whole), atol=1e-5)
    denoiser.kept_above = 2
    assert denoiser.keep(plain) is plain
    denoiser.kept_above = 0
    monkeypatch.setattr(regional, "KEPT_BYTES", 1000)
    assert denoiser.keep(plain) is plain


@pytest.mark.parametrize("conditioning", ["regional", "embedding"])
def test_crops_that_all_images_share_are_encoded_once(conditioning: str) -> None:
    denoiser = small_denoiser(conditioning)
    labels = np.concatenate([two_halves(), np.ones((1, SIDE, SIDE), np.uint8)])
    shared = [noise_crop(1, 0), noise_crop(2, 1, 24)]
    once, each = (encoded(denoiser, labels, [shared, own]) for own in (shared, [*shared]))
    alone = encoded(denoiser, labels[1:], [shared[:1]])
    assert once["tokens"].stride(0) == 0
    assert each["tokens"].stride(0) != 0
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([0.4, 0.7])
    with torch.no_grad():
        expected = denoiser(x, t, each)
        for given in (once, denoiser.keep(once)):
            assert torch.allclose(denoiser(x, t, given), expected, atol=1e-5)
        absent = denoiser(x[1:], t[1:], alone)
        assert torch.allclose(absent, expected[1:], atol=1e-5), "no class, no effect of its crop"


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_each_condition_matters_and_can_be_dropped(conditioning: str) -> None:
    denoiser = small_denoiser(conditioning)
    labels, crops = two_halves(), [[noise_crop(1, 0), noise_crop(2, 1)]]
    x, t = torch.randn(1, 4, 8, 8), torch.full((1,), 0.4)
    with torch.no_grad():
        made = {
            (use_map, use_crops): denoiser(
                x, t, encoded(denoiser, labels, crops, use_map, use_crops)
            )
            for use_map in (True, False)
            for use_crops in (True, False)
        }
        flipped = denoiser(x, t, encoded(denoiser, 3 - labels, crops, False, False))
    outputs = list(made.values())
    for number, one in enumerate(outputs):
        assert all(not torch.allclose(one, other, atol=1e-4) for other in outputs[:number])
    assert torch.allclose(flipped, made[False, False])


def test_the_regional_cost_grows_with_crops_not_with_classes() -> None:
    few = small_denoiser("regional")
    many = small_denoiser("regional", Classes.of(*(f"type {n}" for n in range(100))))
    labels, crops = two_halves(), [[noise_crop(1, 0), noise_crop(2, 1)]]
    shapes = [
        {name: value.shape for name, value in encoded(each, labels, crops).items()}
        for each in (few, many)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_warm_start_carries_classes_by_name(conditioning: str) -> None:
    source = small_denoiser(conditioning)
    classes = Classes.of("tumor", "fat", "stroma")
    target = small_denoiser(conditioning, classes)
    target.load_state_dict(target.adapted(source.state_dict(), CLASSES.names, classes.names))
    labels, renamed = two_halves(), np.select([two_halves() == 1], [3], 1).astype(np.uint8)
    x, t = torch.randn(1, 4, 8, 8), torch.full((1,), 0.4)
    with torch.no_grad():
        before = source(x, t, encoded(source, labels, [[noise_crop(1, 0), noise_crop(2, 1)]]))
        after = target(x, t, encoded(target, renamed, [[noise_crop(3, 0), noise_crop(1, 1)]]))
    assert torch.allclose(before, after, atol=1e-4)


def test_a_typical_crop_is_stained_as_its_class_is() -> None:
    rng, rule, size = np.random.default_rng(0), CropRule(), 64
    labels = np.zeros((size, size), np.uint8)
    labels[8:56, 8:56] = 1
    image = np.full((size, size, 3), 240, np.uint8)
    image[8:32, 8:56] = 60  # one half of the class is dark, and one is light
    image[32:56, 8:56] = 180

    def density(pixels: np.ndarray) -> float:  # type: ignore[type-arg]
        return float(-np.log((pixels.astype(float) + 1) / 256).mean())

    wanted = density(image[labels == 1])
    apart = {}
    for take in (take_crop, take_typical_crop):
        cut = [take(image, labels, 1, rule, rng, size) for _ in range(30)]
        crops = [crop for crop in cut if crop is not None]
        assert len(crops) == 30
        assert all(
            (labels[c.y :, c.x :][: len(c.pixels), : len(c.pixels)] == 1).all() for c in crops
        )
        apart[take] = np.mean([abs(density(crop.pixels) - wanted) for crop in crops])
    assert apart[take_typical_crop] < 0.3 * apart[take_crop]
    assert take_typical_crop(image, labels, 2, rule, rng, size) is None


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


def test_warm_started_canvases_keep_their_weights_by_name() -> None:
    source = ["background", "a", "b"]
    weight = torch.randn(5, condition_width(3, 1), 3, 3)
    target = ["background", "b", "new", "a"]
    adapted = adapt_first_layer(weight, source, target, first=1)
    assert adapted.shape == (5, condition_width(4, 1), 3, 3)
    assert torch.equal(adapted[:, 1], weight[:, 2])
    assert torch.equal(adapted[:, 3], weight[:, 1])
    assert torch.allclose(adapted[:, 2], weight[:, 1:3].mean(1))
    assert torch.equal(adapted[:, 4:7], weight[:, 6:9])
    assert torch.equal(adapt_first_layer(weight, source, source, first=1), weight)


def test_a_warm_start_adds_or_drops_the_canvas_of_label_0() -> None:
    source, target = ["background", "a", "b"], ["other", "a"]
    weight = torch.randn(5, condition_width(3, 1), 3, 3)
    adapted = adapt_first_layer(weight, source, target, first=0)
    assert adapted.shape == (5, condition_width(2, 0), 3, 3)
    assert torch.allclose(adapted[:, 2:5], (weight[:, 3:6] + weight[:, 6:9]) / 2)
    assert torch.equal(adapted[:, 5:8], weight[:, 3:6])
    back = adapt_first_layer(adapted, target, source, first=1)
    assert torch.equal(back[:, 3:6], weight[:, 3:6])


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_every_row_may_have_its_own_time(conditioning: str) -> None:
    denoiser = small_denoiser(conditioning)
    labels = two_halves().repeat(2, 0)
    given = encoded(denoiser, labels, [[noise_crop(1, 0)], [noise_crop(1, 3)]])
    last = {name: value[1:] for name, value in given.items()}
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        mixed = denoiser(x, torch.tensor([0.2, 0.9]), given)
        alone = denoiser(x[1:], torch.tensor([0.9]), last)
    assert torch.allclose(mixed[1:], alone, atol=1e-4)


def two_colours(
    rng: np.random.Generator, count: int
) -> tuple[torch.Tensor, np.ndarray, list[list[Crop]]]:  # type: ignore[type-arg]
    """Images of two flat tissues, each in the colour of its crop."""
    labels = np.ones((count, SIDE, SIDE), np.uint8)
    images = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    crops = []
    for number in range(count):
        cut = int(rng.integers(8, 25))
        part = np.s_[:, cut:] if rng.random() < 0.5 else np.s_[cut:, :]
        labels[number][part] = 2
        colours = rng.integers(20, 236, (3, 3)).astype(np.uint8)
        images[number] = colours[labels[number]]
        patches = [np.broadcast_to(colour, (8, 8, 3)).copy() for colour in colours]
        crops.append([Crop(label, 0, 0, patches[label]) for label in (1, 2)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1, labels, crops


def test_the_regional_model_learns_to_paint_each_class_like_its_crop() -> None:
    def encode(images: torch.Tensor) -> torch.Tensor:
        return 2 * functional.avg_pool2d(images, 4)

    torch.manual_seed(0)
    denoiser = RegionalDenoiser(
        classes=3, latent_channels=3, factor=4, channels=(32, 64), layers=1,
        attention=(True, True), condition_channels=32, first=1, crop_side=8,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(denoiser.parameters(), 2e-3)
    rng = np.random.default_rng(0)
    both = [True] * 16
    for step in range(120):
        images, labels, crops = two_colours(rng, 16)
        latents = encode(images)
        condition = denoiser.lay_out(labels, crops, both, both, encode)
        seeds = [image_seed(0, 16 * step + row) for row in range(16)]
        noise = draw_noise(seeds, latents.shape[1:])
        flow_loss(denoiser, latents, condition, draw_times(seeds), noise).backward()
        optimizer.step()
        optimizer.zero_grad()
    images, labels, crops = two_colours(np.random.default_rng(9), 16)
    with torch.no_grad():
        given = denoiser.encode_condition(denoiser.lay_out(labels, crops, both, both, encode))
        velocity = guided(denoiser, given, Guidance.of(1, 1))
        made = sample_flow(velocity, draw_noise(range(16), (3, 8, 8)), 10)
    wanted = encode(images)
    other = wanted.roll(1, 0)
    assert (made - wanted).abs().mean() < 0.4 * (made - other).abs().mean()


@pytest.mark.parametrize("side", [5, 9, 20])
def test_what_a_crop_says_does_not_depend_on_its_batch(side: int) -> None:
    denoiser, vae = small_denoiser("regional"), small_vae()
    rng = np.random.default_rng(0)
    crops = [[Crop(1, 0, 0, rng.integers(0, 256, (own, own, 3), np.uint8))] for own in (side, SIDE)]
    labels = np.ones((2, SIDE, SIDE), np.uint8)
    sample, time = torch.randn(2, 4, SIDE // 4, SIDE // 4), torch.tensor([0.5, 0.5])

    def velocity(rows: int) -> torch.Tensor:
        given = [True] * rows
        condition = denoiser.lay_out(
            labels[:rows], crops[:rows], given, given, lambda images: encode_latents(vae, images)
        )
        with torch.no_grad():
            found: torch.Tensor = denoiser(
                sample[:rows], time[:rows], denoiser.encode_condition(condition)
            )
        return found[0]

    assert torch.allclose(velocity(1), velocity(2), atol=1e-5)
