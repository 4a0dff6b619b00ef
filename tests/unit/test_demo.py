"""The demo: its first picture, what it shortens, and the page that shows what was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from heterotissue import demo, first_picture
from heterotissue.recipes import load_recipe
from shared.phantom import PhantomSlide
from shared.storage import DirectoryStore


def test_the_shipped_student_paints_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_picture, "MAPS", 1)
    monkeypatch.setattr(first_picture, "DENSITIES", ((0.6, 0.6, 0.6),))
    first_picture.draw_first_picture(DirectoryStore(tmp_path / "store"), tmp_path / "a.png")
    page = np.asarray(Image.open(tmp_path / "a.png")).astype(float)
    tissue = page[-128 - 4 : -4, -128 - 4 : -4]
    red, green, blue = tissue.mean((0, 1))
    assert green < min(red, blue), "stained with haematoxylin and eosin"
    assert tissue.std() > 20, "tissue has structure"


def test_a_recipe_is_shortened_and_nothing_else() -> None:
    plain = load_recipe("tiny")
    half = demo.shortened(plain, 0.5)
    assert half.denoiser.steps == 150
    assert half.untrained() == plain.untrained()


def test_slides_of_one_texture_seed_share_their_textures() -> None:
    slides = [PhantomSlide(512, 512, seed, textures=7) for seed in (1, 2)]
    assert slides[0].textures == slides[1].textures == 7
    assert not np.array_equal(slides[0].palette, slides[1].palette)


def test_the_page_shows_what_is_there_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "headline", lambda _: [("a <b>", "1")])
    for name in ("sheet.png", demo.FIRST_PICTURE, "slide.png"):
        (tmp_path / name).write_bytes(b"")
    report: Any = None
    page = demo.index_page(tmp_path, report)
    places = [page.index(name) for name in (demo.FIRST_PICTURE, "slide.png", "sheet.png")]
    assert places == sorted(places)
    assert "tissue_types.png" not in page
    assert "<td>a &lt;b&gt;</td>" in page
