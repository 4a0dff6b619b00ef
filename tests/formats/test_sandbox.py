"""Files of strangers reach nothing but themselves, and harm nobody but themselves."""

from __future__ import annotations

import errno
import gzip
import os
import platform
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from services.ingest.annotations import qupath
from services.ingest.annotations.outlines import SlideGeometry
from shared.errors import InputError
from shared.imaging.companions import companions
from shared.imaging.sandboxed_slide import open_source
from shared.imaging.slide import Slide
from shared.imaging.stored_slides import local_source
from shared.sandbox import SandboxedFiles, client, confine, files, open_sandboxed, protections
from shared.storage import DirectoryStore, OverlayStore
from tests.formats.slide_files import picture, write_tiff

READER = """
import ctypes, os, socket, subprocess, threading, time
from pathlib import Path
import numpy as np

libc = ctypes.CDLL(None, use_errno=True)

class Reader:
    facts = {}

    def __init__(self, path):
        self.path = path

    def read(self, what, *more):
        text = str(getattr(self, what)(*more)).encode()
        return np.frombuffer(text.ljust(64)[:64], np.uint8)

    def own(self):
        return self.path.read_text()

    def file(self, name):
        return Path(name).read_bytes()

    def folder(self, name):
        return os.listdir(name)

    def write(self, name):
        return Path(name).write_text("x")

    def network(self):
        return socket.create_connection(("127.0.0.1", 9))

    def program(self):
        return subprocess.run(["/bin/true"])

    def fork(self):
        return os.fork()

    def call(self, number):
        ctypes.set_errno(0)
        result = libc.syscall(number, -1, -1, -1, -1, -1, -1)
        return f"{result} {ctypes.get_errno()}"

    def signal(self, process):
        return os.kill(process, 0)

    def environment(self):
        return sorted(set(os.environ) - {"PATH", "LD_LIBRARY_PATH", "LC_CTYPE"})

    def memory(self, size):
        return np.ones(size, np.uint8)[0]

    def crash(self):
        ctypes.string_at(0)

    def hang(self):
        time.sleep(600)
"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Open a file whose reader tries what a captured decoder might."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "hostile_reader.py").write_text(READER)
    path = folder / "slide.txt"
    path.write_text("tissue")
    (folder / "other.txt").write_text("secret")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("HTD_S3_SECRET_KEY", "secret")
        patch.setattr(client, "_servers", [client._Server()])  # one that finds the reader
        yield lambda: open_sandboxed("hostile_reader:Reader", path)


def told(file: Any, *words: Any) -> str:
    return bytes(file.read(words, (64,), np.uint8)).decode().strip()


def test_a_captured_reader_can_do_nothing_but_read_its_file(hostile: Any) -> None:
    with hostile() as file:
        assert told(file, "own") == "tissue"
        assert "secret" not in told(file, "environment").lower()
        attempts: list[tuple[Any, ...]] = [("write", str(file.path)), ("memory", 64 << 30)]
        if protections()["no other files (Landlock)"]:
            attempts += [
                ("file", str(file.path.with_name("other.txt"))), ("file", "/etc/passwd"),
                ("file", f"/proc/{os.getpid()}/environ"), ("folder", str(file.path.parent)),
            ]  # fmt: skip
        if protections()["no network, no other programs (seccomp)"]:
            attempts += [("network",), ("program",), ("fork",), ("signal", os.getpid())]
        for attempt in attempts:
            with pytest.raises(InputError):
                told(file, *attempt)
            assert told(file, "own") == "tissue"


@pytest.mark.skipif(not confine._seccomp_is_there(), reason="this kernel has no seccomp")
def test_no_system_call_of_the_list_is_allowed(hostile: Any) -> None:
    _, numbers = confine._FORBIDDEN[platform.machine()]
    forbidden = {name: number for name, number in numbers.items() if name != "clone3"}
    if platform.machine() == "x86_64":  # by their numbers for x32, too
        forbidden |= {f"x32 {name}": number | 0x40000000 for name, number in numbers.items()}
    with hostile() as file:
        told_of = {name: told(file, "call", number) for name, number in forbidden.items()}
        assert told(file, "own") == "tissue"
    allowed = {name: said for name, said in told_of.items() if said != f"-1 {errno.EPERM}"}
    # With all bits set, clone's flags are those of a thread, which is allowed, but odd.
    assert allowed == {"clone": f"-1 {errno.EINVAL}"}


def test_a_crash_or_a_hang_costs_that_file_alone(
    hostile: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hostile() as other:
        for attack, said in (("crash", "SIGSEGV"), ("hang", "longer than")):
            monkeypatch.setattr(files, "SECONDS", 0.05 if attack == "hang" else 60.0)
            with hostile() as file:
                with pytest.raises(InputError, match=said):
                    told(file, attack)
                assert file.failed
                with pytest.raises(InputError, match="open it again"):
                    told(file, "own")
        monkeypatch.setattr(files, "SECONDS", 60.0)
        assert told(other, "own") == "tissue"


def test_a_lost_server_is_started_again(hostile: Any) -> None:
    with hostile() as file:
        server = client.sandbox_server()._process
        assert server is not None
        server.kill()
        server.wait()
        with pytest.raises(InputError, match="cannot be read"):
            told(file, "own")
    with hostile() as file:
        assert told(file, "own") == "tissue"


def mirax(folder: Path, data: str = "Data0000.dat", index: str = "Index.dat") -> Path:
    (folder / "m").mkdir(parents=True)
    (folder / "m.mrxs").write_bytes(b"\xff\xd8")
    (folder / "m/Slidedat.ini").write_text(
        f"[HIERARCHICAL]\nINDEXFILE = {index}\n[DATAFILE]\nFILE_COUNT=1\nFILE_0={data}\n"
    )
    for name in ("Data0000.dat", "Index.dat"):
        (folder / "m" / name).write_bytes(b"")
    return folder / "m.mrxs"


def vms(folder: Path, name: str, file: str = "h.vms") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file
    path.write_text(f"[Virtual Microscope Specimen]\nNoLayers=1\nImageFile(0,0) = {name}\n")
    return path


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a/../../b", "..", "..\\b"])
def test_a_slide_names_no_files_elsewhere(tmp_path: Path, name: str) -> None:
    for path in (
        mirax(tmp_path / "data", data=name),
        mirax(tmp_path / "index", index=name),
        vms(tmp_path, name),
        vms(tmp_path, name, "h.svs"),
    ):
        with pytest.raises(InputError, match="in its own folder"):
            Slide.open(path, 0.5)


def test_links_are_no_files_of_a_slide(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(128) + b"DICM")
    path = mirax(tmp_path / "a")
    (path.parent / "m/Data0000.dat").unlink()
    (path.parent / "m/Data0000.dat").symlink_to(secret)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/one.dcm").write_bytes(secret.read_bytes())
    (tmp_path / "b/two.dcm").symlink_to(secret)
    (tmp_path / "c.zarr").mkdir()
    (tmp_path / "c.zarr/0").symlink_to(secret)
    for slide in (path, tmp_path / "b/one.dcm", tmp_path / "c.zarr"):
        with pytest.raises(InputError, match="has a link as its file"):
            Slide.open(slide, 0.5)


def test_a_slides_files_of_a_store_lie_beside_each_other(tmp_path: Path) -> None:
    path = mirax(tmp_path / "in")
    parts = [path, *companions(path)]
    store = DirectoryStore(tmp_path / "store")
    for part in parts:
        store.put_file(f"sources/h/{part.relative_to(path.parent)}", part)
    overlay = OverlayStore(store)  # as in a cache, its files lie apart
    overlay.put("sources/h/m/Data0000.dat", b"new")
    for each, data in ((store, b""), (overlay, b"new")):
        with local_source(each, "sources/h/m.mrxs") as main:
            assert (main.parent / "m/Data0000.dat").read_bytes() == data
            assert len(companions(main)) == len(parts) - 1
            assert not any(file.is_symlink() for file in main.parent.rglob("*"))


@pytest.mark.parametrize("aperio", [True, False])
def test_a_tile_of_a_gigapixel_is_refused_before_memory_is_taken(
    tmp_path: Path, aperio: bool
) -> None:
    path = write_tiff(tmp_path / "a.tif", picture(), tile=(256, 256))
    with tifffile.TiffFile(path) as tiff:
        places = [tiff.pages.first.tags[name].valueoffset for name in (322, 323)]
    data = bytearray(path.read_bytes())
    for place in places:
        data[place : place + 2] = struct.pack("<H", 65_520)
    path.write_bytes(data)
    if aperio:
        path = path.rename(tmp_path / "a.svs")
    with pytest.raises(InputError, match="megapixels"):
        Slide.open(path, 0.5)


def test_a_slide_is_the_same_in_the_sandbox(tmp_path: Path) -> None:
    image = picture(noise=20)
    path = write_tiff(tmp_path / "a.tif", image, tile=(256, 256), compression="zlib")
    shutil.copy(path, tmp_path / "b.tif")
    source = open_source(path)
    assert source.dimensions == (512, 512)
    assert np.array_equal(np.asarray(source.read_region((0, 0), 0, (512, 512)))[..., :3], image)
    path.unlink()
    path.symlink_to(tmp_path / "b.tif")  # a user's link to a slide
    with Slide.open(path, 1.0) as slide:
        assert np.array_equal(slide.read(10, 20, (30, 40), 1.0), image[20:60, 10:40])


@pytest.mark.parametrize(
    "head", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"8BPS\0\1", b"\xd7\xcd\xc6\x9a"]
)
def test_formats_that_start_programs_are_not_opened(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(head.ljust(4096, b"\0"))
    with pytest.raises(InputError, match="neither a slide nor an image"):
        Slide.open(path, 1.0)


def test_a_packed_annotation_holds_no_more_than_annotations_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.geojson.gz"
    path.write_bytes(gzip.compress(b"[" + b" " * 1_000_000 + b"]"))
    geometry = SlideGeometry(512, 512, 1.0, 1.0)
    assert qupath.read(path, geometry).outlines == []
    monkeypatch.setattr(qupath, "MIN_UNPACKED", 1000)
    with pytest.raises(InputError, match="unpack it first"):
        qupath.read(path, geometry)


def test_a_crash_among_many_files_of_a_process_costs_its_file_alone(
    tmp_path: Path, hostile: Any
) -> None:
    with hostile() as file:
        folder = file.path.parent
    names = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    for path in names:
        path.write_text(path.stem)
    with SandboxedFiles(names, ["hostile_reader"]) as files_:
        a, b = (files_.open("hostile_reader:Reader", path) for path in names[:2])
        assert (told(a, "own"), told(b, "own")) == ("a", "b")
        assert a._process is b._process
        for attempt in (("file", str(folder / "other.txt")), ("program",)):
            if all(protections().values()):
                with pytest.raises(InputError):
                    told(b, *attempt)
        with pytest.raises(InputError, match=r"b\.txt cannot be read.*SIGSEGV"):
            told(b, "crash")
        assert a.failed
        assert told(files_.open("hostile_reader:Reader", names[2]), "own") == "c"


@pytest.mark.parametrize(
    ("properties", "bounds", "mpp"),
    [
        ({"openslide.bounds-width": "0"}, None, 0.5),
        ({"openslide.bounds-x": "-5"}, None, 0.5),
        ({"openslide.bounds-height": "9" * 5000}, None, 0.5),
        ({"openslide.bounds-y": "1e2"}, None, 0.5),
        ({"openslide.mpp-x": "nan", "openslide.mpp-y": "1e999"}, (1, 2, 30, 40), None),
        ({"openslide.mpp-x": "-0.5"}, (1, 2, 30, 40), None),
        ({"hamamatsu.XOffsetFromSlideCentre": "nan"}, (1, 2, 30, 40), 0.5),
        ({"openslide.objective-power": "inf"}, (1, 2, 30, 40), 0.5),
    ],
)
def test_what_a_slide_states_that_cannot_be_counts_as_nothing(
    properties: dict[str, str], bounds: tuple[int, ...] | None, mpp: float | None
) -> None:
    stated = {
        "openslide.vendor": "hamamatsu", "openslide.mpp-x": "0.5",
        "openslide.bounds-x": "1", "openslide.bounds-y": "2",
        "openslide.bounds-width": "30", "openslide.bounds-height": "40",
        "hamamatsu.XOffsetFromSlideCentre": "10", "hamamatsu.YOffsetFromSlideCentre": "inf",
    } | properties  # fmt: skip

    class Stating(openslide.ImageSlide):
        properties = stated  # type: ignore[assignment]

    with Stating(Image.new("RGB", (50, 60))) as source:
        slide = Slide(Path("s.ndpi"), source, mpp=0.5)
        assert (slide.bounds, slide.stated_mpp) == (bounds, (mpp, mpp) if mpp else None)
        assert (slide.offset_nm, slide.objective) == (None, None)
