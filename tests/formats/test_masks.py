"""Masks of slides and of tiles: the class of every pixel, or a refusal with the numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from services.ingest.annotations.outlines import SlideGeometry
from services.ingest.tiles import TileFiles, read_tile
from shared.contracts.base import Classes
from shared.contracts.regions import RegionRule
from shared.errors import InputError
from shared.imaging.masks import turned
from shared.imaging.tile_images import read_upright
from shared.storage import DirectoryStore
from tests.formats.drawing import draw
from tests.formats.slide_files import ring_of

CLASSES = Classes.of("tumor", "stroma")
ONE = Classes.of("tumor")
WIDTH, HEIGHT = 120, 80
SLIDE = SlideGeometry(WIDTH, HEIGHT, 1.0, 1.0)
COLORS = {"#ff0000": "tumor", "0, 0, 255": "stroma"}

Array = NDArray[Any]


def truth() -> NDArray[np.uint8]:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[10:50, 20:60] = 1
    labels[20:70, 70:110] = 2
    return labels


def save(path: Path, array: Array, **options: Any) -> Path:
    if path.suffix == ".npy":
        with path.open("wb") as file:
            np.save(file, array)
    elif path.suffix in {".tif", ".tiff"}:
        tifffile.imwrite(path, array, **options)
    else:
        Image.fromarray(array).save(path, **options)
    return path


def save_pages(path: Path, *pages: Array) -> Path:
    with tifffile.TiffWriter(path) as file:
        for page in pages:
            file.write(page, tile=(32, 32), metadata=None)
    return path


def rgb(labels: NDArray[np.uint8], *colors: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.asarray([(0, 0, 0), *colors], np.uint8)[labels]


def palette(path: Path, colors: list[int]) -> Path:
    image = Image.fromarray(truth())
    image.putpalette(colors)
    image.save(path)
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def noise() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 3, (HEIGHT, WIDTH), np.uint8)


def alpha(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    colors = np.dstack([rgb(labels, (255, 0, 0), (0, 0, 255)), np.full(labels.shape, 255)])
    colors[labels == 0] = (9, 9, 9, 0)  # transparent
    return colors.astype(np.uint8)


SAME: dict[str, Callable[[Path], Path]] = {
    "png": lambda at: save(at / "a.png", truth()),
    "bmp": lambda at: save(at / "a.bmp", truth()),
    "webp": lambda at: save(at / "a.webp", rgb(truth(), (1, 1, 1), (2, 2, 2)), lossless=True),
    "palette": lambda at: palette(at / "a.png", [255, 255, 255, 9, 99, 149, 200, 7, 7]),
    "gif": lambda at: palette(at / "a.gif", [255, 255, 255, 9, 99, 149, 200, 7, 7]),
    "16 bit png": lambda at: save(at / "a.png", truth().astype(np.uint16)),
    "red": lambda at: save(at / "a.png", rgb(truth(), (1, 0, 0), (2, 0, 0))),
    "equal channels": lambda at: save(at / "a.png", rgb(truth(), (1, 1, 1), (2, 2, 2))),
    "npy": lambda at: save(at / "a.npy", truth()),
    "npy int64": lambda at: save(at / "a.npy", truth().astype(np.int64)),
    "npy int8, one channel": lambda at: save(at / "a.npy", truth().astype(np.int8)[..., None]),
    "tif": lambda at: save(at / "a.tif", truth(), compression="zlib", tile=(32, 32)),
    "tif lzw": lambda at: save(at / "a.tif", truth(), compression="lzw"),
    "tif uint16": lambda at: save(at / "a.tif", truth().astype(np.uint16)),
    "tif int32": lambda at: save(at / "a.tif", truth().astype(np.int32)),
    "tif red": lambda at: save(
        at / "a.tif", rgb(truth(), (1, 0, 0), (2, 0, 0)), photometric="rgb"
    ),
    "tif planes": lambda at: save(
        at / "a.tif", np.moveaxis(rgb(truth(), (1, 0, 0), (2, 0, 0)), -1, 0),
        photometric="rgb", planarconfig="separate",
    ),
    "tif of two levels": lambda at: save_pages(at / "a.tif", truth(), truth()[::2, ::2]),
    "wrong suffix": lambda at: save(at / "a.png", truth()).rename(at / "a.tif"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SAME)
def test_masks_that_hold_indices(kind: str, tmp_path: Path) -> None:
    path = SAME[kind](tmp_path)
    labels, record = draw(path, CLASSES, slide=SLIDE, label_format="mask")
    assert np.array_equal(labels, truth())
    assert record["painted"] == {"tumor": 1_600, "stroma": 2_000}
    assert np.array_equal(cut(tmp_path, path), truth()[:64, :64])


BINARY: dict[str, Callable[[Path], Path]] = {
    "1 bit png": lambda at: save(at / "a.png", truth() == 1),
    "1 bit tif": lambda at: save(at / "a.tif", truth() == 1),  # tifffile says that white is 0
    "0 and 255": lambda at: save(at / "a.png", (truth() == 1).astype(np.uint8) * 255),
    "white": lambda at: save(at / "a.png", rgb(truth() & 1, (255, 255, 255))),
    "red 255": lambda at: save(at / "a.png", rgb(truth() & 1, (255, 0, 0))),
    "npy": lambda at: save(at / "a.npy", truth() == 1),
}  # fmt: skip


@pytest.mark.parametrize("kind", BINARY)
def test_masks_of_one_class(kind: str, tmp_path: Path) -> None:
    path = BINARY[kind](tmp_path)
    labels, _ = draw(path, ONE, slide=SLIDE, label_format="mask")
    assert np.array_equal(labels, truth() == 1)
    assert np.array_equal(cut(tmp_path, path, ONE), (truth() == 1)[:64, :64])


def test_a_binary_mask_names_its_class(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", (truth() == 2).astype(np.uint8) * 255)
    with pytest.raises(InputError, match=r"a\.png has labels outside .*\[255\].*label_names"):
        draw(path, CLASSES, slide=SLIDE)
    labels, _ = draw(path, CLASSES, slide=SLIDE, label_names={"255": "stroma"})
    assert np.array_equal(labels, (truth() == 2) * 2)


@pytest.mark.parametrize("transparent", [False, True])
def test_colours_are_named(transparent: bool, tmp_path: Path) -> None:
    colors = alpha(truth()) if transparent else rgb(truth(), (255, 0, 0), (0, 0, 255))
    path = save(tmp_path / "a.png", colors)
    labels, _ = draw(path, CLASSES, slide=SLIDE, label_names=COLORS)
    assert np.array_equal(labels, truth())
    assert np.array_equal(cut(tmp_path, path, label_names=COLORS), truth()[:64, :64])
    with pytest.raises(InputError, match=r"colours that belong to no class: \[#0000ff, #ff0000\]"):
        draw(path, CLASSES, slide=SLIDE)
    with pytest.raises(InputError, match=r"\[#0000ff\]"):
        draw(path, CLASSES, slide=SLIDE, label_names={"#FF0000": "tumor"})


def test_a_palette_may_be_named_by_its_colours(tmp_path: Path) -> None:
    path = palette(tmp_path / "a.png", [0, 0, 0, 0, 0, 255, 255, 0, 0])
    labels, _ = draw(path, CLASSES, slide=SLIDE, label_names=COLORS)
    assert np.array_equal(labels, np.asarray([0, 2, 1], np.uint8)[truth()])


@pytest.mark.parametrize("ground", [[0, 0, 0], [255, 255, 255], [250, 246, 248]])
def test_a_palette_in_any_order_must_be_named(tmp_path: Path, ground: list[int]) -> None:
    path = palette(tmp_path / "a.png", [255, 0, 0, *ground, 0, 0, 255])
    with pytest.raises(InputError, match=r"1 is (black|white), not 0"):
        draw(path, CLASSES, slide=SLIDE)
    colors = COLORS | {"#{:02x}{:02x}{:02x}".format(*ground): "background"}
    labels, _ = draw(path, CLASSES, slide=SLIDE, label_names=colors)
    assert np.array_equal(labels, np.asarray([1, 0, 2], np.uint8)[truth()])
    numbers = {"0": "tumor", "1": "background", "2": "stroma"}
    labels, _ = draw(path, CLASSES, slide=SLIDE, label_names=numbers)
    assert np.array_equal(labels, np.asarray([1, 0, 2], np.uint8)[truth()])


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "jpeg": (lambda at: save(at / "a.jpg", truth() * 100), "is JPEG, which blurs"),
    "jpeg as png": (lambda at: save(at / "a.jpg", truth()).rename(at / "a.png"), "is JPEG"),
    "jpeg in tif": (
        lambda at: save(at / "a.tif", truth() * 100, compression="jpeg"), "compressed by JPEG"
    ),
    "lossy webp": (
        lambda at: save(at / "a.webp", rgb(truth(), (1, 1, 1), (2, 2, 2))), "is lossy WebP"
    ),
    "12 bit": (
        lambda at: save(at / "a.tif", (truth() > 0).astype(np.uint16) * 4095),
        r"\[4095\] .the highest value is 4095.* Convert it to 8 bits .*--rename .*'4095=stroma'",
    ),
    "12 bit colours": (
        lambda at: save(at / "a.tif", rgb(truth(), (1, 0, 0), (0, 1, 0)).astype(np.uint16) * 4095,
                        photometric="rgb"),
        "more than 8 bits, with values such as 4095: convert it to 8 bits",
    ),
    "256": (lambda at: save(at / "a.png", truth().astype(np.uint16) * 256), r"\[256, 512\]"),
    "instances": (
        lambda at: save(
            at / "a.tif", np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH)
        ),
        "and 9585 more .the highest value is 9599, .* does it number objects",
    ),
    "negative": (lambda at: save(at / "a.npy", truth().astype(np.int16) - 1), "from -1 to 1"),
    "huge": (lambda at: save(at / "a.npy", truth().astype(np.int64) << 40), "from 0 to"),
    "float": (lambda at: save(at / "a.npy", truth() * 0.5), "float64"),
    "float tif": (lambda at: save(at / "a.tif", truth().astype(np.float32)), "float32"),
    "half transparent": (
        lambda at: save(at / "a.png", np.dstack([rgb(truth(), (1, 0, 0), (2, 0, 0)),
                                                 truth() * 60])),
        "half-transparent",
    ),
    "white is 0": (
        lambda at: save(at / "a.tif", truth(), photometric="miniswhite"), "0 as white"
    ),
    "1 bit, white is 0": (
        lambda at: save(at / "a.tif", truth() != 1, photometric="miniswhite", software="Lab 2.1"),
        "how 'Lab 2.1', .* 83% of it would be labelled by its stored values, 17% by .* 8 bits per",
    ),
    "1 bit, white is 0, of nobody": (
        lambda at: save(at / "a.tif", truth() != 1, photometric="miniswhite", software=False),
        "how 'an unnamed programme'"),
    "empty file": (lambda at: written(at / "a.png", b""), "is empty"),
    "text": (lambda at: written(at / "a.png", b"mask"), "is empty, or no"),
    "truncated": (
        lambda at: written(at / "a.png", save(at / "b.png", noise()).read_bytes()[:500]),
        "cannot be read",
    ),
    "pickle": (
        lambda at: save(at / "a.npy", np.asarray([{1: 2}], object)), "cannot be read"
    ),
    "a page for each class": (
        lambda at: save(at / "a.tif", np.stack([truth() == 1, truth() == 2]).astype(np.uint8),
                        photometric="minisblack"),
        "holds 2 images of 120×80 px, of which only the first .* the index of its class in every",
    ),
    "a channel for each class": (
        lambda at: save(at / "a.ome.tif", np.stack([truth() == 1, truth() == 2, truth() == 3])
                        .astype(np.uint8), photometric="minisblack", ome=True,
                        metadata={"axes": "CYX"}),
        "holds 3 images of 120×80 px",
    ),
    "a frame for each class": (
        lambda at: save(at / "a.gif", (truth() == 1).astype(np.uint8), save_all=True,
                        append_images=[Image.fromarray((truth() == 2).astype(np.uint8))]),
        "a.gif is animated",
    ),
    "a ring of pages": (
        lambda at: ring_of(save(at / "a.tif", truth())), "its directories have no end"
    ),
    "cube": (lambda at: save(at / "a.npy", np.zeros((4, 4, 9), np.uint8)), "shape"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_masks_that_are_refused(kind: str, tmp_path: Path) -> None:
    make, message = REFUSED[kind]
    path = make(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        draw(path, CLASSES, slide=SLIDE, label_format=None if "jp" in kind else "mask")
    assert path.name in str(error.value)
    with pytest.raises(InputError, match=message):
        cut(tmp_path, path)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (30_000, 20_000)).save(path)
    with pytest.raises(InputError, match="30000×20000 px"):
        draw(path, CLASSES, slide=SlideGeometry(30_000, 20_000, 1.0, 1.0))


def test_a_mask_beside_the_tissue_is_refused(tmp_path: Path) -> None:
    tissue = np.zeros((HEIGHT, WIDTH), np.bool_)
    tissue[:8] = True
    with pytest.raises(InputError, match="lies on tissue"):
        draw(save(tmp_path / "a.png", truth()), CLASSES, slide=SLIDE, tissue=tissue)


# Tiles


def tile(folder: Path, orientation: int | None = None, size: tuple[int, int] = (96, 64)) -> Path:
    """A tile whose left half is dark as it is stored, and perhaps an EXIF orientation."""
    width, height = size
    image = np.full((height, width, 3), 220, np.uint8)
    image[:, : width // 2] = 40
    exif = Image.Exif()
    if orientation:
        exif[274] = orientation
    path = folder / "tile.png"
    Image.fromarray(image).save(path, exif=exif)
    return path


def cut(
    folder: Path,
    mask: Path,
    classes: Classes = CLASSES,
    image: Path | None = None,
    *,
    label: int | None = None,
    label_names: dict[str, str] | None = None,
) -> NDArray[np.uint8]:
    """Return the upper left corner, 64 × 64 px, of the label map of a tile."""
    picture = image or tile(folder, size=(WIDTH, HEIGHT))
    row = {"image": str(picture), "mask": str(mask), "label": label, "mpp": 0.5}
    rule = RegionRule(size=32, mpp=0.5)
    with TileFiles(DirectoryStore(folder), [str(picture), str(mask)]) as files:
        read = read_tile(files, row, classes, rule, label_names or {})
    image_, labels = read.image, read.labels
    assert image_.shape[:2] == labels.shape
    if image is not None:
        assert ((image_[..., 0] < 100) == (labels > 0)).all()  # as `tile` draws it
        return labels
    return labels[:64, :64]


def test_a_folder_names_the_class_of_its_tiles(tmp_path: Path) -> None:
    numbered = save(tmp_path / "a_anno.bmp", truth() * 7)
    assert np.array_equal(cut(tmp_path, numbered, label=2), (truth()[:64, :64] > 0) * 2)
    with pytest.raises(InputError, match=r"its values \[1, 2\] may be classes"):
        cut(tmp_path, save(tmp_path / "b_anno.bmp", truth()), label=2)


def dark(width: int, height: int) -> NDArray[np.uint8]:
    labels = np.zeros((height, width), np.uint8)
    labels[:, : width // 2] = 1
    return labels


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_turns_with_its_tile(orientation: int, tmp_path: Path) -> None:
    image = tile(tmp_path, orientation)
    exif = Image.Exif()
    exif[274] = orientation
    mask = save(tmp_path / "m.png", dark(96, 64), exif=exif)
    assert cut(tmp_path, mask, image=image).shape == ((96, 64) if orientation > 4 else (64, 96))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("seen", [False, True])
def test_the_size_of_a_mask_tells_how_it_lies(orientation: int, seen: bool, tmp_path: Path) -> None:
    image = tile(tmp_path, orientation)
    labels = turned(dark(96, 64), orientation) if seen else dark(96, 64)
    assert cut(tmp_path, save(tmp_path / "m.png", labels), image=image).shape == (96, 64)


@pytest.mark.parametrize(("orientation", "size"), [(6, (64, 64)), (3, (96, 64)), (2, (96, 64))])
def test_a_mask_that_may_lie_either_way_is_refused(
    orientation: int, size: tuple[int, int], tmp_path: Path
) -> None:
    image = tile(tmp_path, orientation, size)
    mask = save(tmp_path / "m.png", dark(*size))
    with pytest.raises(InputError, match=f"tile.png states the EXIF orientation {orientation}"):
        cut(tmp_path, mask, image=image)


@pytest.mark.parametrize("damage", [b"", b"no image", None])
def test_damaged_tiles_are_refused(damage: bytes | None, tmp_path: Path) -> None:
    image = tile(tmp_path)
    image.write_bytes(image.read_bytes()[:150] if damage is None else damage)
    mask = save(tmp_path / "m.png", dark(96, 64))
    with pytest.raises(InputError, match=r"tile\.png cannot be read as an image"):
        cut(tmp_path, mask, image=image)


def test_a_jpeg_tile_with_lost_pixels_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    image = save(tmp_path / "tile.jpg", noise)
    mask = save(tmp_path / "m.png", dark(96, 64))
    data = image.read_bytes()
    image.write_bytes(data[:2000] + b"\xff\xd9" + data[2000:])  # a marker of the end, too early
    with pytest.raises(InputError, match="pixels of it are lost"):
        cut(tmp_path, mask, image=image)


def test_a_tile_of_16_bits(tmp_path: Path) -> None:
    image = np.full((64, 96, 3), 56_000, np.uint16)
    image[:, :48] = 10_000
    mask = save(tmp_path / "m.png", dark(96, 64))
    path = save(tmp_path / "tile.tif", image, photometric="rgb")
    assert cut(tmp_path, mask, image=path).shape == (64, 96)
    for high, said in ((4095, "4095 of 65535.*data of 12 bits"), (900, "900 of .* of 10 bits")):
        image[:] = 0
        image[-1, -1] = high
        for kind, stored in (("tif", image), ("png", image), ("png", image[..., 0])):
            path = tmp_path / f"deep.{kind}"
            cv2.imwrite(str(path), stored)
            with pytest.raises(InputError, match=rf"deep\.{kind} has 16 bits .*{said}.*scale it"):
                read_upright(path)


def test_tile_and_mask_of_other_sizes(tmp_path: Path) -> None:
    mask = save(tmp_path / "m.png", dark(64, 96))
    with pytest.raises(InputError, match=r"96×64 px, its mask m\.png 64×96"):
        cut(tmp_path, mask, image=tile(tmp_path))
