"""Slides of scanners whose formats have several files, or facts of their own, through OpenSlide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from heterotissue.sources import find_slides, slide_sources
from shared.errors import InputError
from shared.imaging.slide import Bounds, Slide
from shared.imaging.stored_slides import check_content, local_source
from shared.storage import DirectoryStore
from tests.formats.scanner_files import write_mirax, write_philips, write_ventana, write_vms
from tests.formats.slide_files import halves, picture

IMAGE = picture()


class Kind(NamedTuple):
    """How a format is written, and what is expected of it."""

    file: str
    write: Callable[[Path], Path]
    vendor: str
    mpp_y: float = 0.5
    size: tuple[int, int] = (512, 512)
    bounds: Bounds | None = None
    parts: int = 0
    loss: float = 0.0


KINDS = (
    Kind("a.mrxs", lambda path: write_mirax(path, IMAGE, (0.25, 0.5)), "mirax",
         size=(1024, 1024), bounds=Bounds(256, 256, 512, 512), parts=4),
    Kind("a.vms", lambda path: write_vms(path, IMAGE, (0.25, 0.5)), "hamamatsu", parts=3, loss=3),
    Kind("a.tiff", lambda path: write_philips(path, IMAGE, (0.25, 0.5)), "philips"),
    Kind("a.bif", lambda path: write_ventana(path, IMAGE, 0.25), "ventana", mpp_y=0.25, loss=4),
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.vendor)
def test_a_slide_of_a_scanner_and_its_files(tmp_path: Path, kind: Kind) -> None:
    path = tmp_path / "in" / kind.file
    path.parent.mkdir()
    kind.write(path)
    store = DirectoryStore(tmp_path / "store")
    sources = slide_sources(store, find_slides([tmp_path / "in"]), use_labels=False)
    (item,) = sources.slides
    assert (item.slide, len(item.parts), sources.refused) == ("a", kind.parts, [])
    with local_source(store, item.source) as copy, Slide.open(copy) as slide:
        check_content(copy, item.parts, str(item.sha256), "a")
        assert (slide.vendor, slide.mpp, slide.mpp_y) == (kind.vendor, 0.25, kind.mpp_y)
        assert (slide.width, slide.height) == kind.size
        assert slide.bounds == kind.bounds
        corner = kind.bounds[:2] if kind.bounds else (0, 0)
        for level, expected in enumerate(halves(IMAGE, 2)):
            size = expected.shape[1::-1]
            got: Any = slide._source.read_region(corner, level, size).convert("RGB")
            assert np.abs(np.asarray(got).astype(int) - expected).mean() <= kind.loss
        window = slide.read(corner[0] + 500, corner[1] + 500, (64, 64), slide.finest)
        assert (window[20:] > 230).all()  # beyond the image, or between its tiles
    for number, part in enumerate(item.parts):  # every file counts
        file = store.root / str(Path(item.source).parent) / part
        file.write_bytes(file.read_bytes() + b"\0")
        with (
            pytest.raises(InputError, match="has changed"),
            local_source(store, item.source) as copy,
        ):
            check_content(copy, item.parts, str(item.sha256), f"a {number}")
        file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[1]], ids=lambda kind: kind.vendor)
def test_files_that_a_slide_names_are_there_and_beside_it(tmp_path: Path, kind: Kind) -> None:
    path = kind.write(tmp_path / kind.file)
    listing = tmp_path / "a/Slidedat.ini" if kind.vendor == "mirax" else path
    text = listing.read_text()
    name = "Data0001.dat" if kind.vendor == "mirax" else "a(1,0).jpg"
    for other in (f"../{name}", "/etc/hostname", "..", "sub/b.dat"):
        listing.write_text(text.replace(f"={name}", f"={other}").replace(f"= {name}", f"= {other}"))
        with pytest.raises(InputError, match="which is not beside it"):
            Slide.open(path)
    listing.write_text(text + "\nOptimisationFile=a.opt\n" * (kind.vendor == "hamamatsu"))
    Slide.open(path).close()
    (listing.parent / name).unlink()
    with pytest.raises(InputError, match=r"needs \S+ beside it, which is not there"):
        find_slides([path])
    with pytest.raises(InputError, match=r"needs \S+ beside it, which is not there"):
        Slide.open(path)


def test_a_slide_of_no_size_is_refused(tmp_path: Path) -> None:
    path = write_ventana(tmp_path / "a.bif", IMAGE, 0.25, joined=("RIGHT",))
    with pytest.raises(InputError, match=r"a\.bif cannot be opened: it states a size that is none"):
        Slide.open(path)


def test_an_ending_in_capitals_is_named(tmp_path: Path) -> None:
    path = write_mirax(tmp_path / "a.mrxs", IMAGE, (0.25, 0.25)).rename(tmp_path / "a.MRXS")
    with pytest.raises(InputError, match="ending in small letters"):
        Slide.open(path)
