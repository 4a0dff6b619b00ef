"""Label maps that bodies give: each value counts as the PNG stores it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import rasterio
from PIL import Image

from tests.gateway import Gateway
from tests.unit.test_gateway_images import NOW, body, label_map, text


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("bits", [2, 4])
def test_label_maps_of_few_bits_are_taken_by_their_values(
    gateway: Gateway, bits: int, tmp_path: Path
) -> None:
    file = tmp_path / "few-bits.png"
    shape = {"width": 32, "height": 32, "count": 1, "dtype": "uint8"}
    with rasterio.open(file, "w", driver="PNG", nbits=bits, **shape) as data:
        data.write(label_map(), 1)
    assert file.read_bytes()[24] == bits
    places = {
        gateway.client.post("/v1/images", json=body(crops=[], **given), headers=NOW).headers[
            "Location"
        ]
        for given in ({}, {"labels": text(file.read_bytes())})
    }
    assert len(places) == 1, "it is the same request"


def test_palettes_are_taken_by_their_indices(gateway: Gateway) -> None:
    picture = Image.fromarray(label_map(), mode="L")
    picture.putpalette([9] * 6 + [200, 0, 0])
    data = io.BytesIO()
    picture.save(data, format="PNG")
    place = gateway.client.post(
        "/v1/images", json=body(labels=text(data.getvalue()), crops=[]), headers=NOW
    ).headers["Location"]
    plain = gateway.client.post("/v1/images", json=body(crops=[]), headers=NOW)
    assert plain.headers["Location"] == place
