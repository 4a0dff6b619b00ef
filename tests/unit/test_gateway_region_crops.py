"""Crops that requests over HTTP take out of region sets."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from shared.contracts.image import GivenCrop
from shared.contracts.models import ModelRef
from shared.contracts.regions import RegionSet, region_set_key
from shared.datasets.given_crops import read_crop
from shared.errors import InputError
from shared.imaging.codec import encode_png
from shared.models import read_model
from tests.gateway import Gateway


def text(array: np.ndarray) -> str:  # type: ignore[type-arg]
    return base64.b64encode(encode_png(array)).decode()


@pytest.mark.parametrize("path", ["/v1/images", "/v1/edits", "/v1/fields"])
def test_crops_of_regions_that_do_not_fit_the_model_are_refused(
    gateway: Gateway, path: str
) -> None:
    store = gateway.resources.root
    record = store.get_model(region_set_key("toy"), RegionSet)
    rule = record.rule.model_copy(update={"mpp": 3.0})
    store.put_json(region_set_key("coarse"), record.model_copy(update={"rule": rule}))
    given: dict[str, Any] = {
        "model": "toy",
        "labels": text(np.full((32, 32), 2, np.uint8)),
        "crops": [{"tissue": "tumor", "regions": "coarse", "region": "slide-a_0_0"}],
    }
    if path == "/v1/edits":
        given |= {"action": "restain", "image": text(np.full((32, 32, 3), 200, np.uint8))}
    if path == "/v1/fields":
        given |= {"field": "f"}
    answer = gateway.client.post(path, json=given, headers={"Prefer": "wait=0"})
    assert answer.status_code == 422, answer.text
    assert "are at 3.0 µm per pixel, the model at 0.5" in answer.json()["detail"]
    assert answer.json()["errors"][0]["pointer"] == "#/crops/0"


def test_workers_check_the_regions_of_crops_too(gateway: Gateway) -> None:
    store = gateway.resources.root
    model = read_model(store, ModelRef("toy", "1"))
    large = model.model_copy(update={"size": 128})
    cut = GivenCrop(label=2, regions="toy", region="slide-a_0_0")
    with pytest.raises(InputError, match="are 64 px, smaller than the model's 128 px"):
        read_crop(store, cut, large, np.random.default_rng(0))
