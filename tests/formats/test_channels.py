"""Images of three channels: red, green and blue, or three dyes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from shared.errors import InputError
from shared.imaging.slide import Slide
from tests.formats.slide_files import picture, write_zarr

IMAGE = picture()[:256, :256]
RED, GREEN, BLUE, WHITE = -16776961, 16711935, 65535, -1

TAKEN: list[tuple[list[str], list[int]]] = [
    (["Red", "Green", "Blue"], [RED, GREEN, BLUE]),
    (["Red", "Green", "Blue"], [WHITE] * 3),
    (["Brightfield - R", "Brightfield - G", "Brightfield - B"], [WHITE] * 3),
    (["Channel 0", "Channel 1", "Channel 2"], [RED, GREEN, BLUE]),
    (["C:0", "C:1", "C:2"], [WHITE] * 3),
    (["RGB", "RGB", "RGB"], [WHITE] * 3),
    (["", "", ""], [WHITE] * 3),
]
REFUSED: list[tuple[list[str], list[int], str]] = [
    (["Blue", "Green", "Red"], [WHITE] * 3, "in the order blue, green, red: save it as an RGB"),
    (["Channel 0", "Channel 1", "Channel 2"], [BLUE, GREEN, RED], "in the order blue, green, red"),
    (["Blue", "", "Red"], [WHITE] * 3, "in the order blue, \\?, red"),
    (["DAPI", "FITC", "Texas Red"], [BLUE, GREEN, RED], "DAPI, FITC, Texas Red, not red"),
    (["Alexa 488", "Cy3", "Cy5"], [GREEN, RED, WHITE], "looks like fluorescence"),
]


def write_ome(path: Path, names: list[str], colors: list[int]) -> Path:
    planes = np.ascontiguousarray(IMAGE.transpose(2, 0, 1))
    channels = {"Name": names, "Color": colors}
    tifffile.imwrite(
        path, planes, ome=True, photometric="minisblack", tile=(128, 128),
        metadata={"axes": "CYX", "Channel": channels},
    )  # fmt: skip
    return path


def write_omero(path: Path, names: list[str], colors: list[int]) -> Path:
    write_zarr(path, IMAGE, levels=1)
    file = path / "zarr.json"
    stated = json.loads(file.read_text())
    hexadecimal = [f"{(color & 0xFFFFFFFF) >> 8:06X}" for color in colors]
    stated["attributes"]["ome"]["omero"] = {
        "channels": [
            {"label": name, "color": color} for name, color in zip(names, hexadecimal, strict=True)
        ]
    }
    file.write_text(json.dumps(stated))
    return path


@pytest.mark.parametrize(("names", "colors"), TAKEN)
def test_red_green_and_blue_are_read(names: list[str], colors: list[int], tmp_path: Path) -> None:
    with Slide.open(write_ome(tmp_path / "a.ome.tif", names, colors), 0.5) as slide:
        assert np.array_equal(slide.read(0, 0, (256, 256), 0.5), IMAGE)


@pytest.mark.parametrize(("names", "colors", "said"), REFUSED)
def test_other_orders_and_dyes_are_refused(
    names: list[str], colors: list[int], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        Slide.open(write_ome(tmp_path / "a.ome.tif", names, colors), 0.5)


def test_ome_zarr_is_checked_too(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    for number, (names, colors) in enumerate(TAKEN):
        with Slide.open(write_omero(tmp_path / f"{number}.zarr", names, colors)) as slide:
            assert np.array_equal(slide.read(0, 0, (256, 256), 0.5), IMAGE)
    for names, colors, said in REFUSED:
        with pytest.raises(InputError, match=said):
            Slide.open(write_omero(tmp_path / f"{len(said)}{names[0]}.zarr", names, colors))
