"""Slides that are cut off or damaged are refused, or what is lost of them costs itself alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from services.embed.stage import EmbedStage
from shared.contracts.embed import EmbedRequest, features_key
from shared.contracts.regions import RegionRule
from shared.errors import InputError
from shared.features import read_features
from shared.imaging.region_sets import RegionIndex, load_region_set
from shared.imaging.slide import DamagedError, Slide
from shared.jobs import JobStatus, Ledger, run_job
from shared.storage import DirectoryStore
from tests.formats.slide_files import (
    ingest,
    picture,
    resolution,
    write_ome,
    write_outlines,
    write_tiff,
    ycbcr,
)


def embed(store: DirectoryStore, **fields: Any) -> JobStatus:
    ledger = Ledger(store)
    request = EmbedRequest(cohort="c", encoder="random", batch_size=4, **fields)
    return run_job(ledger, EmbedStage(), ledger.submit(request, replace=True))


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
def test_truncated_plain_images_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture()).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    status = ingest(DirectoryStore(tmp_path / "store"), path, mpp=1.0)
    assert f"a.{suffix} cannot be opened" in status.failed["s"]
    assert "copy it again" in status.failed["s"]


def test_a_jpeg_with_lost_pixels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(picture()).save(path)
    data = path.read_bytes()
    path.write_bytes(data + b"trailing bytes")
    with Slide.open(path, 1.0) as slide:
        assert slide.width == 512
    path.write_bytes(data[:9000] + bytes(2000) + data[11000:])
    with pytest.raises(InputError, match=r"a\.jpg is damaged: pixels of it are lost"):
        Slide.open(path, 1.0)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["tiled", "strips", "aperio", "ome"])
@pytest.mark.parametrize("name", ["a.svs", "a.tif"])
def test_a_truncated_tiff_is_refused(tmp_path: Path, kind: str, share: float, name: str) -> None:
    path = tmp_path / name
    if kind == "ome":
        write_ome(path, picture(), {"PhysicalSizeX": 1.0, "PhysicalSizeY": 1.0})
    else:
        with tifffile.TiffWriter(path) as file:
            layout = {"rowsperstrip": 64} if kind == "strips" else {"tile": (128, 128)}
            text = "Aperio Image Library v12\r\n512x512 |AppMag = 20|MPP = 1" * (kind == "aperio")
            for image in (picture(), picture()[::4, ::4].copy()):
                file.write(image, photometric="rgb", description=text, metadata=None, **layout)
    Slide.open(path, 1.0).close() if kind != "strips" or name == "a.tif" else None
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    status = ingest(DirectoryStore(tmp_path / "store"), path, mpp=1.0)
    assert name in status.failed["s"]
    assert "damaged or incomplete" in status.failed["s"].replace(", i", " or i")
    assert "opy it again" in status.failed["s"]


def test_a_slide_with_zeros_at_its_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        text = "Aperio Image Library v12\r\n512x512 |AppMag = 20|MPP = 1"
        for image in (picture(), picture()[::4, ::4].copy()):
            file.write(image, photometric="rgb", tile=(128, 128), description=text, metadata=None)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    status = ingest(DirectoryStore(tmp_path / "store"), path, mpp=1.0)
    assert status.state == "failed"
    assert "Copy it again" in status.failed["s"] or "copy it again" in status.failed["s"]


@pytest.mark.parametrize("suffix", [".svs", ".ndpi", ".scn", ".mrxs", ".dcm", ".czi"])
def test_a_plain_image_under_a_scanners_name_is_refused(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    path = (tmp_path / "a.png").rename(tmp_path / f"a{suffix}")
    said = "needs its folder a beside it" if suffix == ".mrxs" else "damaged"
    with pytest.raises(InputError, match=said):
        Slide.open(path, 1.0)


def damage(path: Path, page: int, tiles: list[int]) -> None:
    """Spoil tiles of a TIFF."""
    with tifffile.TiffFile(path) as tiff:
        offsets, counts = tiff.pages[page].dataoffsets, tiff.pages[page].databytecounts  # type: ignore[union-attr]
    data = bytearray(path.read_bytes())
    for tile in tiles:
        data[offsets[tile] : offsets[tile] + counts[tile]] = bytes(counts[tile])
    path.write_bytes(data)


def pyramid(path: Path) -> Path:
    with tifffile.TiffWriter(path) as file:
        common: dict[str, Any] = {
            "tile": (64, 64), "photometric": "ycbcr", "compression": "jpeg", "metadata": None,
        }  # fmt: skip
        file.write(ycbcr(picture()), **common, **resolution(1.0))
        small = picture().reshape(64, 8, 64, 8, 3).mean((1, 3)).astype(np.uint8)
        file.write(ycbcr(small), subfiletype=1, **common, **resolution(8.0))
    return path


def test_a_damaged_tile_costs_its_patches_and_regions(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    path = pyramid(tmp_path / "a.tif")
    labels = write_outlines(tmp_path / "a.geojson", 1, 1)
    assert ingest(store, path, labels, regions=RegionRule(size=128, mpp=1.0)).state == "done"
    whole = {r.key for r in RegionIndex(store, load_region_set(store, "c"), "train")}
    damage(path, 0, [8 * 2 + 3])  # x 192 to 256, y 128 to 192: one patch of the grid
    other = DirectoryStore(tmp_path / "other")
    status = ingest(other, path, labels, max_damaged=0.9)
    assert status.state == "done", status.failed
    assert status.result is not None
    share = float(status.result["damaged"]["s"].rstrip("%")) / 100
    kept = {r.key for r in RegionIndex(other, load_region_set(other, "c"), "train")}
    touching = {
        key for key in whole
        if (x := int(key.split("_")[1])) < 256 and x + 128 > 192
        and (y := int(key.split("_")[2])) < 192 and y + 128 > 128
    }  # fmt: skip
    assert touching
    assert kept == whole - touching
    assert share == pytest.approx(len(touching) / len(whole), abs=1e-4)

    status = embed(other)
    assert status.state == "done", status.failed
    assert status.result is not None
    assert status.result["damaged_patches"] == {"s": 1}
    assert status.result["patches"] == 35
    found = read_features(other.local(features_key("random", "c", "s")))
    assert len(found.coords) == len(found.features) == 35
    assert (192, 128) not in {tuple(corner) for corner in found.coords.tolist()}
    assert embed(store, max_damaged=0.02).state == "failed"  # store names the same, damaged file

    assert ingest(other, path, labels, max_damaged=0.0).state == "failed"


def test_features_around_damage_are_those_of_the_whole_slide(tmp_path: Path) -> None:
    path = pyramid(tmp_path / "a.tif")
    store = DirectoryStore(tmp_path / "store")
    ingest(store, path)
    assert embed(store).state == "done"
    whole = read_features(store.local(features_key("random", "c", "s")))
    damage(path, 0, [8 * 2 + 3, 8 * 5 + 5])
    other = DirectoryStore(tmp_path / "other")
    assert ingest(other, path).state == "done"
    assert embed(other, max_damaged=0.1).state == "done"
    part = read_features(other.local(features_key("random", "c", "s")))
    kept = [tuple(c) not in {(192, 128), (320, 320)} for c in whole.coords.tolist()]
    assert np.array_equal(part.coords, whole.coords[kept])
    np.testing.assert_allclose(part.features, whole.features[kept], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", [{"tile": (64, 64)}, {"tile": None, "rowsperstrip": 64}])
def test_damage_of_a_slide_without_pyramid_is_no_tissue(
    tmp_path: Path, layout: dict[str, Any]
) -> None:
    path = write_tiff(tmp_path / "a.tif", picture(), compression="jpeg", **layout, **resolution(1))
    damage(path, 0, [8 * 2 + 3 if "rowsperstrip" not in layout else 2])
    with Slide.open(path) as slide:
        with pytest.raises(DamagedError, match=r"a\.tif cannot be read at"):
            slide.read(192, 128, (64, 64), 1.0)
        assert slide.read(64, 64, (64, 64), 1.0).mean() == pytest.approx(188, abs=5)
        small, damaged = slide.thumbnail(512, 0.2)
    assert damaged == pytest.approx(1 / 64 if "rowsperstrip" not in layout else 1 / 8)
    assert (small[128:192, 192:256] == 255).all()
    store = DirectoryStore(tmp_path / "store")
    status = ingest(store, path, max_damaged=0.2)
    assert status.result is not None
    assert status.result["damaged"] == {"s": f"{damaged:.2%}"}
    refused = ingest(DirectoryStore(tmp_path / "other"), path, max_damaged=0.01)
    assert "damaged in more than 0.01 of its area" in refused.failed["s"]
