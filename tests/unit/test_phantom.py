"""Phantom slides: the image, the mask and the outlines tell the same truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from services.ingest.annotations.outlines import SlideGeometry
from shared.errors import InputError
from shared.imaging.slide import Slide
from shared.phantom import PHANTOM_CLASSES, PhantomFiles, PhantomSlide, write_phantom
from tests.formats.drawing import draw
from tests.phantoms import PHANTOM_SEED

SIDE = 2048


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> PhantomFiles:
    return write_phantom(tmp_path_factory.mktemp("phantom"), "p", SIDE, SIDE, PHANTOM_SEED)


def test_openslide_reads_the_pyramid_at_its_resolution(phantom: PhantomFiles) -> None:
    with Slide.open(phantom.slide) as slide:
        assert (slide.width, slide.height) == (SIDE, SIDE)
        assert slide.mpp == pytest.approx(0.5, rel=1e-3)
        assert slide.vendor == "generic-tiff"
        assert slide.levels >= 2
        fine = slide.read(600, 600, (256, 256), 0.5)
        coarse = slide.read(600, 600, (64, 64), 2.0)
        assert abs(fine.mean() - coarse.mean()) < 3


def test_mask_geojson_and_xml_agree_exactly(phantom: PhantomFiles) -> None:
    truth = tifffile.imread(phantom.mask)
    assert len(np.unique(truth)) >= 4
    slide = SlideGeometry(SIDE, SIDE, 0.5, 0.5)
    mpp = 0.5 * SIDE / truth.shape[1]
    for path in (phantom.geojson, phantom.xml):
        labels, _ = draw(path, PHANTOM_CLASSES, slide=slide, mpp=mpp)
        assert np.array_equal(labels, truth), path.suffix


def test_the_same_seed_gives_the_same_bytes(phantom: PhantomFiles, tmp_path: Path) -> None:
    again = write_phantom(tmp_path, "p", SIDE, SIDE, PHANTOM_SEED, threads=1)
    for name in ("slide", "mask", "geojson", "xml"):
        assert getattr(again, name).read_bytes() == getattr(phantom, name).read_bytes()


def test_blocks_are_cut_from_one_picture() -> None:
    slide = PhantomSlide(SIDE, SIDE, PHANTOM_SEED)
    whole = slide.render(100, 100, 128, 128)
    part = slide.render(132, 140, 64, 64)
    assert np.array_equal(whole[128 : 128 + 256, 160 : 160 + 256], part)
    labels = slide.labels(0, 0, 512, 512)
    assert np.array_equal(labels[132:196, 140:204], slide.labels(132, 140, 64, 64))


def test_tissues_look_as_they_are_labelled() -> None:
    """Lymphocytes are darkest, fat is nearly glass, and stroma is pink."""
    slide = PhantomSlide(SIDE * 2, SIDE * 2, PHANTOM_SEED)
    labels = slide.labels(0, 0, 1024, 1024)
    brightness, redness = {}, {}
    for name in ("stroma", "lymphocytes", "fat"):
        index = PHANTOM_CLASSES.index(name)
        rows, columns = np.nonzero(labels == index)
        middle = len(rows) // 2
        top, left = int(rows[middle]) // 64 * 64, int(columns[middle]) // 64 * 64
        image = slide.render(top, left, 64, 64).astype(float)
        inside = np.kron(slide.labels(top, left, 64, 64) == index, np.ones((4, 4), bool))
        brightness[name] = image[inside].mean()
        redness[name] = (image[..., 0] - image[..., 1])[inside].mean()
    assert brightness["lymphocytes"] < brightness["stroma"] < brightness["fat"]
    assert redness["stroma"] > 25


def test_stains_differ_between_slides() -> None:
    means = [PhantomSlide(512, 512, seed).palette[100, 100].astype(int) for seed in range(6)]
    assert np.ptp(means, axis=0).max() > 15


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="multiples"):
        PhantomSlide(1001, 1000, 0)
