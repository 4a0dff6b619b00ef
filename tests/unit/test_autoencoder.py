"""The embedded autoencoder, on real tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from shared.contracts.recipe import VaeRecipe
from shared.diffusion import autoencoder
from shared.diffusion.autoencoder import (
    EMBEDDED,
    decode_latents,
    encode_latents,
    make_vae,
    to_unit,
    vae_factor,
)
from shared.errors import InputError


def tissue(folder: Path) -> torch.Tensor:
    """Tiles of the held-out split at 0.875 µm per pixel, (n, 3, 128, 128) in [-1, 1]."""
    paths = sorted((folder / "ebhi_seg/val").rglob("*.webp"))[::20]
    tiles = [Image.open(path).convert("RGB").resize((128, 128), Image.BOX) for path in paths]
    return to_unit(torch.from_numpy(np.stack([np.asarray(tile) for tile in tiles])))


def test_the_embedded_autoencoder_gives_tissue_back(real_data: Path) -> None:
    vae, images = make_vae(VaeRecipe(pretrained="embedded")), tissue(real_data)
    with torch.no_grad():
        latents = encode_latents(vae, images)
        again = decode_latents(vae, latents)
    assert latents.shape[1:] == (16, 16, 16)
    assert abs(float(latents.mean())) < 0.2
    assert 0.8 < float(latents.std()) < 1.2
    errors = (again - images).square().mean((1, 2, 3))
    assert float((10 * torch.log10(4 / errors)).mean()) > 17


def test_the_embedded_autoencoder_is_small_and_tells_no_path() -> None:
    assert sum(path.stat().st_size for path in EMBEDDED.iterdir()) < 16e6
    assert "/" not in (EMBEDDED / "config.json").read_text()
    assert make_vae(VaeRecipe(pretrained="embedded")).dtype == torch.float32


def test_a_vae_of_a_folder_keeps_its_weights_and_no_path(tmp_path: Path) -> None:
    vae = make_vae(VaeRecipe(architecture="dc", channels=(8, 16), latent_channels=4))
    vae.save_pretrained(tmp_path / "mine", safe_serialization=True)
    again = make_vae(VaeRecipe(pretrained=str(tmp_path / "mine")))
    assert str(tmp_path) not in str(dict(again.config))
    for name, value in again.state_dict().items():
        assert torch.equal(value, vae.state_dict()[name]), name
    with pytest.raises(InputError, match="cannot load the VAE"):
        make_vae(VaeRecipe(pretrained=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("channels", "latent_channels"), [((8, 18, 64), 4), ((8, 16), 6)], ids=["levels", "latents"]
)
def test_channels_that_do_not_fold_are_refused(
    channels: tuple[int, ...], latent_channels: int
) -> None:
    with pytest.raises(ValidationError, match="folds pixels into channels"):
        VaeRecipe(architecture="dc", channels=channels, latent_channels=latent_channels)
    VaeRecipe(architecture="kl", channels=channels, latent_channels=latent_channels)


@pytest.mark.parametrize(
    "recipe",
    [
        VaeRecipe(architecture="kl", channels=(8, 16), latent_channels=4),
        VaeRecipe(architecture="dc", channels=(8,), latent_channels=4),
    ],
    ids=["kl", "dc"],
)
def test_many_images_are_decoded_in_parts_and_large_ones_in_tiles(
    monkeypatch: pytest.MonkeyPatch, recipe: VaeRecipe
) -> None:
    vae = make_vae(recipe).eval()
    assert vae_factor(vae) == recipe.factor == 2
    sizes: list[tuple[int, ...]] = []
    vae.decoder.register_forward_pre_hook(lambda _, given: sizes.append(tuple(given[0].shape)))
    latents = torch.randn(5, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = decode_latents(vae, latents)
        monkeypatch.setattr(autoencoder, "CPU_PIXELS", 2 * 32**2)
        parts = decode_latents(vae, latents)
        assert [size[0] for size in sizes] == [5, 2, 2, 1]
        assert torch.allclose(whole, parts, atol=1e-5)
        sizes.clear()
        monkeypatch.setattr(autoencoder, "MAX_UNTILED", 16)
        assert decode_latents(vae, latents[:1]).shape == whole[:1].shape
        assert max(size[2] for size in sizes) == 8
