"""Outlines are painted strip by strip, with the points of each strip alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio.features
import tifffile
from shapely import get_num_coordinates
from shapely.geometry import Polygon, box
from shapely.geometry.base import BaseGeometry

from services.ingest.annotations.class_names import Labelled
from services.ingest.annotations.drawing import Drawn
from services.ingest.annotations.outlines import SlideGeometry, polygon
from services.ingest.annotations.placement import place
from services.ingest.annotations.rasterize import in_order, paint
from services.ingest.annotations.strips import Strips
from services.ingest.stage import IngestStage
from shared.arrays import UInt8
from shared.contracts.base import Classes
from shared.contracts.ingest import IngestRequest, PatchGrid, SlideSource
from shared.contracts.regions import RegionRule
from shared.errors import InputError
from shared.imaging.label_map import LABEL_TILE
from shared.jobs import Context
from shared.storage import DirectoryStore

PATH = Path("a.geojson")
WIDTH, HEIGHT = 300, 3 * LABEL_TILE + 77
CLASSES = Classes.of("tumor", "stroma")


def painted(areas: list[tuple[BaseGeometry, int]]) -> UInt8:
    parts = in_order([Labelled(area, label) for area, label in areas], CLASSES, ())
    slide = SlideGeometry(WIDTH, HEIGHT, 1.0, 1.0)
    return np.concatenate(
        list(paint(PATH, parts, slide, 1.0, (WIDTH, HEIGHT), Counter(), Counter()))
    )


def at_once(areas: list[tuple[BaseGeometry, int]], **options: Any) -> UInt8:
    """Paint whole polygons on the whole picture."""
    parts = in_order([Labelled(area, label) for area, label in areas], CLASSES, ())
    shapes = [(part.area, part.label) for part in parts]
    return np.asarray(
        rasterio.features.rasterize(shapes, out_shape=(HEIGHT, WIDTH), dtype=np.uint8, **options)
    )


def star(rng: np.random.Generator, points: int, rounded: Callable[[Any], Any]) -> Any:
    """Return a ring around a random place, which may cross the borders of the picture."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, points))
    radii = rng.uniform(20, 900, points)
    center = rng.uniform(-50, (WIDTH + 50, HEIGHT + 50))
    ring = center + np.stack([0.4 * np.cos(angles), np.sin(angles)], 1) * radii[:, None]
    return rounded(ring)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("step", [None, 1.0, 0.5])
def test_strips_show_what_whole_outlines_show(seed: int, step: float | None) -> None:
    """Points on the grid lie on centres and edges of pixels, where rounding would show."""
    rng = np.random.default_rng(seed)

    def rounded(ring: Any) -> Any:
        return ring if step is None else np.round(ring / step) * step

    areas: list[tuple[BaseGeometry, int]] = []
    for label in (1, 2, 1):
        shell = star(rng, 60, rounded)
        middle = shell.mean(0)
        hole, touching = middle + (shell - middle) * 0.4, middle + (shell - middle) * 0.6
        touching[7] = shell[7]
        areas.append((polygon(shell.tolist(), [hole.tolist(), touching.tolist()]), label))
    crossing = rng.uniform(-20, (WIDTH + 20, HEIGHT + 20), (9, 2))  # a star that crosses itself
    areas.append((polygon(rounded(crossing).tolist()), 2))
    assert (painted(areas) == at_once(areas)).all()


@pytest.mark.parametrize("seed", range(6))
def test_strips_show_all_that_outlines_touch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    area = polygon(star(rng, 80, lambda ring: ring).tolist())
    parts = [part.area for part in in_order([Labelled(area, 1)], CLASSES, ())]
    strips = Strips(PATH, parts, (WIDTH, HEIGHT))
    shown = np.zeros((HEIGHT, WIDTH), np.uint8)
    for top in range(0, HEIGHT, LABEL_TILE):
        rows = min(LABEL_TILE, HEIGHT - top)
        shapes = [(part, 1) for _, part in strips.near(top, rows)]
        shown[top : top + rows] = strips.draw(shapes, top, rows, all_touched=True)
    assert (shown == at_once([(area, 1)], all_touched=True)).all()


def fringe(points: int) -> Polygon:
    """Return an area of the whole picture, with many points along its upper border."""
    xs = np.linspace(1, WIDTH - 1, points)
    ys = 100 + 50 * np.sin(np.arange(points))
    return Polygon([*zip(xs, ys, strict=True), (WIDTH - 1, HEIGHT - 1), (1, HEIGHT - 1)])


def test_a_strip_is_painted_with_the_points_near_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = rasterio.features.rasterize

    def counting(shapes: Any, **options: Any) -> Any:
        seen.append(sum(int(get_num_coordinates(area)) for area, _ in shapes))
        return original(shapes, **options)

    area = fringe(50_000)
    expected = at_once([(area, 1)])
    monkeypatch.setattr(rasterio.features, "rasterize", counting)
    assert (painted([(area, 1)]) == expected).all()
    assert max(seen[:2]) > 50_000  # the first strip, and its class
    assert len(seen) == 8
    assert max(seen[2:]) < 10


def test_outlines_finer_than_pixels_are_refused() -> None:
    xs = np.linspace(1, WIDTH - 1, 40_000)
    ys = np.where(np.arange(40_000) % 2, 1, HEIGHT - 1)
    comb = Polygon([*zip(xs, ys, strict=True), (WIDTH - 1, 0), (1, 0)])
    with pytest.raises(InputError, match=r"outlines of a\.geojson have 40,003 points"):
        painted([(comb, 1)])
    with pytest.raises(InputError, match="Simplify them"):
        place(
            PATH, [Labelled(comb, 1)], SlideGeometry(WIDTH, HEIGHT, 1.0, 1.0),
            np.ones((HEIGHT, WIDTH), np.bool_), "auto", "auto",
        )  # fmt: skip


def test_ingest_tells_of_each_strip(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tiff", rectangle(), photometric="rgb", tile=(256, 256))
    corners = [[100, 100], [500, 100], [500, 1000], [100, 1000], [100, 100]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [corners]},
        "properties": {"classification": {"name": "tumor"}},
    }
    outlines = tmp_path / "a.geojson"
    outlines.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    source = SlideSource(slide="s", source=str(tmp_path / "a.tiff"), labels=str(outlines), mpp=1.0)
    request = IngestRequest(
        cohort="c", slides=(source,), classes=CLASSES, allow_other_stains=True,
        patches=PatchGrid(size=64, mpp=1.0, stride=64), regions=RegionRule(size=128, mpp=1.0),
    )  # fmt: skip
    notes: list[str] = []

    def report(done: int, total: int, note: str) -> None:
        notes.append(note)

    store = DirectoryStore(tmp_path / "store")
    context = Context(store, threads=1, device="cpu", report=report)
    (shard,) = IngestStage().plan(request, context).phases[0]
    IngestStage().run(request, shard, context)
    assert [note for note in notes if "rows of labels" in note] == [
        "512 of 1100 rows of labels drawn",
        "1024 of 1100 rows of labels drawn",
        "1100 of 1100 rows of labels drawn",
    ]


def rectangle() -> UInt8:
    """Return a slide of 1,100 rows with tissue inside."""
    pixels = np.full((1100, 600, 3), 245, np.uint8)
    pixels[50:1050, 50:550] = (225, 150, 190)
    noise = np.random.default_rng(0).normal(0, 6, pixels.shape)
    return np.asarray((pixels + noise).clip(0, 255), np.uint8)


def test_a_drawing_ends_at_the_strip_at_which_its_job_is_cancelled() -> None:
    class CancelledError(Exception):
        pass

    told = []

    def progress(done: int, rows: int) -> None:
        told.append((done, rows))
        if len(told) == 2:
            raise CancelledError

    slide = SlideGeometry(WIDTH, HEIGHT, 1.0, 1.0)
    parts = [Labelled(box(0, 0, WIDTH, HEIGHT), 1)]
    strips = paint(PATH, parts, slide, 1.0, (WIDTH, HEIGHT), Counter(), Counter())
    tissue = np.ones((4, 4), np.bool_)
    with pytest.raises(CancelledError):
        list(Drawn("qupath").counted(strips, tissue, HEIGHT, progress))
    assert told == [(LABEL_TILE, HEIGHT), (2 * LABEL_TILE, HEIGHT)]
