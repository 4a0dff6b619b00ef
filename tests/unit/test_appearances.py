"""Appearances of a field: each rules at its place, and they change smoothly between."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from pydantic import ValidationError

from services.field import stage
from services.field.crops import choose_crops
from shared.arrays import UInt8
from shared.contracts.deploy import Deployment, deployment_key
from shared.contracts.field import FieldRecord, FieldRequest, PlacedCrop, field_key
from shared.contracts.models import ModelRef
from shared.contracts.sampling import Sampling
from shared.datasets.field_inputs import put_crop
from shared.diffusion.appearances import Appearance, nearness
from shared.diffusion.crops import Crop
from shared.diffusion.field_decoder import FieldDecoder, probe
from shared.diffusion.fields import FieldMap, FieldSampler
from shared.diffusion.model_store import load_model
from shared.errors import InputError
from shared.models import read_model
from shared.settings import Settings
from shared.storage import DirectoryStore
from tests.models import publish_toy_model
from tests.region_sets import make_region_set
from tests.unit.test_fields import LABELS, label_map, make, put_labels

LEFT, RIGHT = (0.0, 0.5), (1.0, 0.5)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> DirectoryStore:
    """A store with a model, and regions of two slides."""
    torch.set_num_threads(1)
    store = DirectoryStore(tmp_path_factory.mktemp("appearances"))
    splits = {"slide-a": "train", "slide-b": "train"}
    publish_toy_model(store, make_region_set(store, splits=splits, regions=2))  # type: ignore[arg-type]
    put_labels(store, label_map())
    return store


def crop(label: int, colour: int) -> Crop:
    return Crop(label, 0, 0, np.full((12, 12, 3), colour, np.uint8))


def appearance(colour: int, place: tuple[float, float]) -> Appearance:
    return Appearance.of([crop(2, colour), crop(1, colour + 20)], *place)


def test_shares_are_smooth_and_whole_at_the_places() -> None:
    places = [(0.1, 0.2), (0.9, 0.3), (0.5, 0.8)]
    looks = [Appearance({}, x, y) for x, y in places]
    shares = nearness(looks, 300, 500, torch.arange(300) + 0.5, torch.arange(500) + 0.5)
    assert shares.shape == (3, 300, 500)
    torch.testing.assert_close(shares.sum(0), torch.ones(300, 500))
    for number, (x, y) in enumerate(places):
        assert shares[number, int(y * 300), int(x * 500)] == 1
        assert shares[number].min() == 0
    assert shares.diff(dim=1).abs().max() < 0.03, "no jump from a row to the next"
    assert nearness(looks[:1], 3, 3, torch.arange(3), torch.arange(3)).eq(1).all()


def test_a_velocity_is_that_of_the_appearance_nearby(store: DirectoryStore) -> None:
    model = load_model(store, ModelRef("toy", "1"), "cpu")
    labels = FieldMap.of(np.tile(label_map()[:64], (1, 6)))
    light, dark = appearance(200, LEFT), appearance(80, RIGHT)

    def velocity(*looks: Appearance) -> torch.Tensor:
        sampler = FieldSampler(
            model.pipeline, model.record.size, Sampling(steps=2), labels, looks, 3
        )
        given = sampler.noise(0, sampler.height)
        return sampler.velocity(0, 1.0, given, 0, sampler.height)

    both, one, other = velocity(light, dark), velocity(light), velocity(dark)
    quarter, middle = both.shape[2] // 4, both.shape[2] // 2
    torch.testing.assert_close(both[..., :quarter], one[..., :quarter])
    torch.testing.assert_close(both[..., -quarter:], other[..., -quarter:])
    near = slice(middle - 1, middle + 1)
    halfway = (one[..., near] + other[..., near]) / 2
    difference = (one - other)[..., near].abs().max()
    assert difference > 0
    assert (both[..., near] - halfway).abs().max() < difference / 2


def test_a_place_is_decoded_by_the_statistics_of_its_own_appearance(store: DirectoryStore) -> None:
    model = load_model(store, ModelRef("toy", "1"), "cpu")
    labels = FieldMap.of(np.tile(label_map()[:64], (1, 6)))
    light, dark = appearance(220, LEFT), appearance(20, RIGHT)

    def sampler(*looks: Appearance) -> FieldSampler:
        return FieldSampler(model.pipeline, model.record.size, Sampling(steps=2), labels, looks, 3)

    latents = sampler(light).noise(0, sampler(light).height)

    def decoded(*looks: Appearance) -> UInt8:
        own = sampler(*looks)
        return FieldDecoder(own, probe(own)).decode(latents, 0, own.height)

    both, one, other = decoded(light, dark), decoded(light), decoded(dark)
    quarter, middle = both.shape[1] // 4, both.shape[1] // 2
    np.testing.assert_array_equal(both[:, :quarter], one[:, :quarter])
    np.testing.assert_array_equal(both[:, -quarter:], other[:, -quarter:])
    halfway = (one[:, middle].astype(int) + other[:, middle]) / 2
    assert np.abs(one[:, middle].astype(int) - other[:, middle]).max() > 8
    assert np.abs(both[:, middle] - halfway).max() <= 2


def test_a_field_with_appearances_has_the_same_bytes_in_any_strips(store: DirectoryStore) -> None:
    assert make(store, field="strips", appearances=2, strip=512).state == "done"
    assert make(store, field="whole", appearances=2, strip=2048).state == "done"
    files = [
        tifffile.imread(store.local(field_key(name, "slide.tiff"))) for name in ("strips", "whole")
    ]
    np.testing.assert_array_equal(*files)
    record = store.get_model(field_key("strips", "field.json"), FieldRecord)
    assert [(own.appearance, own.label) for own in record.crops] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert len({own.at for own in record.crops}) == 2
    slides = {str(own.region).split("_")[0] for own in record.crops}
    assert slides == {"slide-a", "slide-b"}
    for own in record.crops:
        assert store.exists(field_key("strips", f"crops/{own.appearance}-{own.label}.png"))


def test_crops_of_places_are_checked_together(store: DirectoryStore) -> None:
    model = read_model(store, ModelRef("toy", "1"))
    pixels = np.full((16, 16, 3), 128, np.uint8)
    stroma, tumor = (put_crop(store, name, pixels, model) for name in ("stroma", "tumor"))

    def request(*crops: tuple[object, object], **more: object) -> FieldRequest:
        placed = [PlacedCrop.model_validate({**vars(own), "at": at}) for own, at in crops]
        plain = {"field": "f", "model": "toy", "labels": LABELS, "crops": placed, **more}
        return FieldRequest.model_validate(plain)

    whole = request((stroma, LEFT), (tumor, LEFT), (tumor, RIGHT), (stroma, RIGHT))
    chosen = choose_crops(store, whole, model, [0, 1, 2])
    assert [(own.at, own.label) for own, _ in chosen] == [
        (LEFT, 1), (LEFT, 2), (RIGHT, 1), (RIGHT, 2),
    ]  # fmt: skip
    with pytest.raises(InputError, match="no crop is given of 'tumor'"):
        choose_crops(
            store, request((stroma, LEFT), (tumor, LEFT), (stroma, RIGHT)), model, [0, 1, 2]
        )
    with pytest.raises(InputError, match="several crops: give one, or give each another place"):
        choose_crops(
            store, request((stroma, None), (stroma, None), (tumor, None)), model, [0, 1, 2]
        )
    for wrong, message in (
        ([((stroma, LEFT), (tumor, None)), {}], "some crops have a place, and others have none"),
        ([((stroma, None),), {"appearances": 2}], "leave out one of both"),
        ([((stroma, (0.5, 1.5)),), {}], "less than or equal to 1"),
    ):
        with pytest.raises(ValidationError, match=message):
            request(*wrong[0], **wrong[1])  # type: ignore[misc, arg-type]
    with pytest.raises(InputError, match=r"only 2 of the slides .* ask for at most 2 appearances"):
        choose_crops(store, request(appearances=3), model, [0, 1, 2])


def test_crops_beyond_a_plan_are_refused_before_any_work(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Deployment(number=1, version="1", engine="tensorrt", sha256={}, max_tokens=3, factor=2)
    store.put_json(deployment_key("toy", 1), plan)
    monkeypatch.setattr(stage, "settings", lambda: Settings(triton_url="triton:8001"))
    status = make(store, field="beyond", appearances=2)
    assert status.state == "failed"
    assert "the model's TensorRT plan takes 3: give fewer or smaller" in status.failed["plan"]
    store.delete(deployment_key("toy", 1))


def test_the_command_line_reads_places(store: DirectoryStore, tmp_path: Path) -> None:
    from PIL import Image

    from heterotissue.cli.fields import put_placed_crops

    path = tmp_path / "a@b.png"
    Image.fromarray(np.full((16, 16, 3), 128, np.uint8)).save(path)
    model = read_model(store, ModelRef("toy", "1"))
    placed = put_placed_crops(store, [f"tumor={path}@0.25,1", f"stroma={path}"], model)
    assert [own.at for own in placed] == [(0.25, 1.0), None]
