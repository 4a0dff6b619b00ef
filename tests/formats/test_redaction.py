"""Copies of slides lack label and macro images and identifying text; their levels are unchanged."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from heterotissue.sources import find_slides, slide_sources
from heterotissue.sources.keeping import Sources
from shared.contracts.ingest import CohortRecord, PatchGrid, cohort_key
from shared.errors import InputError
from shared.imaging.redaction import redactions
from shared.imaging.slide import Slide
from shared.imaging.stored_slides import check_content, local_source, slide_hash
from shared.storage import DirectoryStore
from tests.formats.cohort_files import tissue, write_dicom
from tests.formats.scanner_files import encoded, write_mirax, write_ventana, write_vms
from tests.formats.slide_files import picture, resolution, write_leica, write_zarr

SHOWN = ("CMU-1-Small-Region.svs", "fluorescence.ndpi", "camelyon_dicom_jpeg.dcm")
PLANTED = (b"DOE^JANE", b"S24-1187-A1", b"BC0099887", b"19610203")
LABEL = np.tile(np.frombuffer(b"THE LABEL OF JANE DOE S24-1187! ", np.uint8), 24 * 4)
LABEL = LABEL.reshape(32, 32, 3)
"""Pixels of a label image, uncompressed: its bytes are known."""

APERIO = (
    "Aperio Image Library v11.2.1 \r\n512x512 (128x128) RAW|AppMag = 20|MPP = 0.5|"
    "Filename = S24-1187-A1|Barcode = BC0099887|User = DOE^JANE|Date = 19610203|Left = 25.5"
)


def write_svs(path: Path) -> Path:
    with tifffile.TiffWriter(path) as file:
        common = {"photometric": "rgb", "metadata": None} | resolution(0.5)
        tiled = common | {"tile": (128, 128), "description": APERIO}
        file.write(picture(), **tiled)
        file.write(picture(8), **common, description=APERIO.replace("512x512", "64x64"))
        for name, kind in (("label", 1), ("macro", 9)):
            text = f"Aperio Image Library v11.2.1 \r\n{name} 32x32"
            file.write(LABEL, **common, description=text, subfiletype=kind, rowsperstrip=32)
    return path


def keep(tmp_path: Path, *paths: Path, **options: bool) -> tuple[DirectoryStore, Sources]:
    store = DirectoryStore(tmp_path / "store")
    return store, slide_sources(store, find_slides(list(paths)), use_labels=False, **options)


def bodies(store: DirectoryStore) -> bytes:
    return b"".join(store.get(key) for key in store.list("sources/"))


def planted_in(data: bytes) -> list[bytes]:
    return [text for text in (*PLANTED, LABEL.tobytes()[:32]) if text in data]


def test_the_copy_of_an_aperio_slide_names_nobody(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs")
    assert len(planted_in(path.read_bytes())) == 5
    store, sources = keep(tmp_path, path)
    assert planted_in(bodies(store)) == []
    (source,) = sources.slides
    with local_source(store, source.source) as copy:
        check_content(copy, source.parts, source.sha256 or "", "the copy")
        assert copy.stat().st_size == path.stat().st_size
        with openslide.OpenSlide(path) as one, openslide.OpenSlide(copy) as other:
            assert set(one.associated_images) == {"thumbnail", "label", "macro"}
            assert not other.associated_images
            assert other.properties["aperio.AppMag"] == "20"
            whole = [slide.read_region((0, 0), 0, slide.dimensions) for slide in (one, other)]
            assert np.array_equal(*map(np.asarray, whole))
        with Slide.open(copy) as opened:
            assert opened.mpp == 0.5


def test_keep_source_and_in_place_change_nothing(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs")
    store, sources = keep(tmp_path, path, keep_source=True)
    assert bodies(store) == path.read_bytes()
    assert sources.slides[0].sha256 == slide_hash(path, ())
    _, sources = keep(tmp_path, path, in_place=True)
    assert sources.slides[0].sha256 == slide_hash(path, ())


def test_a_slide_that_a_cohort_has_whole_stays_as_it_is(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs")
    store, before = keep(tmp_path, path, keep_source=True)
    record = CohortRecord(
        cohort="c", classes=None, patches=PatchGrid(), splits={"a": "train"},
        sha256={"a": before.slides[0].sha256 or ""},
    )  # fmt: skip
    store.put_json(cohort_key("c"), record)
    again = slide_sources(store, find_slides([path]), use_labels=False, cohort="c")
    assert again.slides == before.slides


def test_the_copy_of_a_dicom_slide_names_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    levels = [
        write_dicom(folder / f"l{level}.dcm", tissue(0, 512 >> level), "1.2.3", "S24-1187-A1")
        for level in (0, 1)
    ]
    label = write_dicom(folder / "label.dcm", tissue(1, 128), "1.2.3", "S24-1187-A1")
    for path in (*levels, label):
        data = dcmread(path)
        data.PatientName, data.PatientBirthDate, data.BarcodeValue = (
            "DOE^JANE",
            "19610203",
            "BC0099887",
        )
        specimen = Dataset()
        specimen.SpecimenIdentifier = "S24-1187-A1-0"
        data.SpecimenDescriptionSequence = Sequence([specimen])
        specimen.is_undefined_length_sequence_item = path == levels[0]
        data["SpecimenDescriptionSequence"].is_undefined_length = path == levels[0]
        step, text = Dataset(), Dataset()
        text.TextValue, text.PersonName = "S24-1187-A1", "DOE^JANE"
        step.SpecimenPreparationStepContentItemSequence = Sequence([text])
        specimen.SpecimenPreparationSequence = Sequence([step])
        data.file_meta.SourceApplicationEntityTitle = "BC0099887"
        data.add_new(0x7FE10010, "LO", "DOE^JANE")  # behind the pixels
        data.private_block(0x0055, "SCANNER", create=True).add_new(1, "LO", "BC0099887")
        if path == label:
            data.ImageType = ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]
        data.save_as(path)
        assert set(planted_in(path.read_bytes())) == set(PLANTED)
    store, sources = keep(tmp_path, folder)
    assert planted_in(bodies(store)) == []
    (source,) = sources.slides
    assert source.parts == ("l1.dcm",)
    with local_source(store, source.source) as copy:
        check_content(copy, source.parts, source.sha256 or "", "the copy")
        for path, kept in zip(levels, (copy, copy.with_name("l1.dcm")), strict=True):
            assert dcmread(kept).PixelData == dcmread(path).PixelData


def test_label_images_of_other_tiffs_are_blanked(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    xml = "<PerkinElmer><ImageType>Label</ImageType><Barcode>BC0099887</Barcode></PerkinElmer>"
    with tifffile.TiffWriter(path, bigtiff=True, byteorder=">") as file:
        common = {"photometric": "rgb", "metadata": None} | resolution(1)
        file.write(picture(), **common, tile=(128, 128), description='<s PatientName="DOE^JANE"/>',
                   extratags=[(315, 2, 0, "S24-1187-A1", True)])  # fmt: skip
        file.write(LABEL, **common, description=xml, rowsperstrip=32)
        file.write(picture(2), **common, tile=(128, 128), subfiletype=1)
    store, sources = keep(tmp_path, path)
    assert planted_in(bodies(store)) == []
    with local_source(store, sources.slides[0].source) as copy, Slide.open(copy) as opened:
        assert opened.levels == 2
        assert opened.width == 512


def test_the_copy_of_a_mirax_slide_has_no_label(tmp_path: Path) -> None:
    label = encoded(picture(8), "JPEG")
    asides = [encoded(picture(4), "JPEG"), label, label]
    path = write_mirax(tmp_path / "a.mrxs", picture(), (0.5, 0.5), asides=asides)
    listing = tmp_path / "a/Slidedat.ini"
    named = b"SLIDE_BARCODE = S24-1187-A1\r\nPROJECT_NAME =\r\nIMAGENUMBER_X"
    listing.write_bytes(listing.read_bytes().replace(b"IMAGENUMBER_X", named))
    store, sources = keep(tmp_path, path)
    assert planted_in(bodies(store)) == []
    assert not [aside for aside in asides if aside[20:] in bodies(store)]
    same_but_for_asides(store, sources, path, set())


def test_the_copy_of_a_vms_slide_has_no_macro_image(tmp_path: Path) -> None:
    path = write_vms(tmp_path / "a.vms", picture(), (0.5, 0.5))
    path.write_text(path.read_text() + "AuthCode=DOE^JANE\nReference=S24-1187-A1\n")
    store, sources = keep(tmp_path, path)
    assert not [key for key in store.list("sources/") if "macro" in key]
    assert planted_in(bodies(store)) == []
    same_but_for_asides(store, sources, path, set())


def test_the_copy_of_a_leica_slide_has_no_macro_image(tmp_path: Path) -> None:
    path = write_leica(tmp_path / "a.scn", picture(), 0, 0, 1024, 1024)
    store, sources = keep(tmp_path, path)
    same_but_for_asides(store, sources, path, {"macro"})  # its name, and black pixels
    with (
        local_source(store, sources.slides[0].source) as copy,
        openslide.OpenSlide(copy) as opened,
    ):
        assert not np.asarray(opened.associated_images["macro"])[..., :3].any()


def same_but_for_asides(
    store: DirectoryStore, sources: Sources, path: Path, asides: set[str]
) -> None:
    (source,) = sources.slides
    with local_source(store, source.source) as copy:
        check_content(copy, source.parts, source.sha256 or "", "the copy")
        with openslide.OpenSlide(path) as one, openslide.OpenSlide(copy) as other:
            assert set(one.associated_images) >= {"macro"}
            assert set(other.associated_images) == asides
            whole = [slide.read_region((0, 0), 0, slide.dimensions) for slide in (one, other)]
            assert np.array_equal(*map(np.asarray, whole))


def test_the_copy_of_a_czi_has_no_attached_label(tmp_path: Path) -> None:
    def segment(name: bytes, body: bytes) -> bytes:
        body = body.ljust(-(-len(body) // 32) * 32, b"\0")
        return struct.pack("<16s2q", name, len(body), len(body)) + body

    def attached(name: bytes) -> bytes:
        entry = b"A1".ljust(48, b"\0") + name.ljust(80, b"\0")
        return segment(b"ZISRAWATTACH", struct.pack("<q8x", 96) + entry.ljust(240, b"\0") + lines)

    lines = LABEL.tobytes()[:96]
    xml = b"<ImageDocument><Barcode>BC0099887</Barcode><SizeX>7</SizeX></ImageDocument>"
    metadata = struct.pack("<i", len(xml)).ljust(256, b"\0") + xml
    path = tmp_path / "a.czi"
    path.write_bytes(
        segment(b"ZISRAWFILE", bytes(512)) + segment(b"ZISRAWDIRECTORY", lines)
        + attached(b"Label") + attached(b"TimeStamps") + segment(b"ZISRAWMETADATA", metadata)
    )  # fmt: skip
    store, _ = keep(tmp_path, path)
    assert bodies(store).count(lines) == 1
    assert b"BC0099887" not in bodies(store)
    assert b"<SizeX>7</SizeX>" in bodies(store)
    assert len(bodies(store)) == path.stat().st_size


def test_slides_whose_label_is_not_found_are_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(picture(), tile=(64, 64), metadata=None)
        file.write(picture(2)[:64, :96], subfiletype=1, tile=(64, 64))  # a level, or a label
    with pytest.raises(InputError, match=r"its label and macro images cannot .* --keep-source"):
        keep(tmp_path, path)
    assert len(keep(tmp_path, path, keep_source=True)[1].slides) == 1


@pytest.mark.parametrize("start", [b"II*\0", b"no slide", b"ZISRAWFILE", b"SQLite format 3\0"])
def test_files_that_cannot_be_parsed_are_not_copied(start: bytes, tmp_path: Path) -> None:
    path = tmp_path / ("a.czi" if start == b"ZISRAWFILE" else "a.svs")
    path.write_bytes(start + b"\xff" * 600)
    with pytest.raises(InputError):
        keep(tmp_path, path)
    assert not list(DirectoryStore(tmp_path / "store").list("sources/"))


def test_nothing_is_changed_in_files_that_name_nobody(tmp_path: Path) -> None:
    plain = tmp_path / "a.tif"
    options = {"photometric": "rgb", "tile": (128, 128), "metadata": None, "software": False}
    tifffile.imwrite(plain, picture(), **options)
    assert redactions(plain) == []


def copied(path: Path) -> bytes:
    """Return the bytes of a file's copy."""
    data = bytearray(path.read_bytes())
    for offset, new in redactions(path):
        data[offset : offset + len(new)] = new
    return bytes(data)


def tiff_with_label(path: Path, words: str, **options: Any) -> Path:
    """Write a TIFF with a label behind its image."""
    with tifffile.TiffWriter(path) as file:
        common = {"photometric": "rgb", "metadata": None}
        file.write(picture(2), **common, tile=(128, 128), subifds=options.pop("subifds", 0))
        file.write(LABEL, **common, description=words, rowsperstrip=32, **options)
    return path


@pytest.mark.parametrize("options", [{}, {"subfiletype": 1}, {"subifds": 1}])
@pytest.mark.parametrize("words", ["Slide Label", "type: label", ""])
def test_a_label_goes_however_it_is_called(
    words: str, options: dict[str, Any], tmp_path: Path
) -> None:
    path = tiff_with_label(tmp_path / "a.tif", words, **options)
    assert LABEL.tobytes()[:32] in path.read_bytes()
    data = copied(path)
    assert LABEL.tobytes()[:32] not in data
    assert not words or words.encode() not in data
    path.write_bytes(data)
    with tifffile.TiffFile(path) as file:
        assert np.array_equal(file.pages.first.asarray(), picture(2))


@pytest.mark.parametrize("words", ["Aperio Image\r\nlabel 48x48", "Aperio Image Library"])
def test_a_label_among_the_levels_is_refused(words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    with tifffile.TiffWriter(path) as file:
        common = {"photometric": "rgb", "metadata": None, "tile": (16, 16)}
        file.write(picture(4), **common, description=APERIO)
        side = 64 if "label" in words else 80  # 64 could be a level, 80 cannot
        file.write(np.zeros((side, side, 3), np.uint8), **common, description=words)
    with pytest.raises(InputError, match="label"):
        redactions(path)


def test_images_and_names_of_ome_go(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    common = {"photometric": "rgb", "tile": (128, 128)}
    spacing = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    with tifffile.TiffWriter(path, ome=True) as file:
        stated = {"Name": "DOE^JANE", "Description": "S24-1187-A1"} | spacing
        file.write(picture(2), **common, metadata=stated)
        file.write(LABEL, photometric="rgb", metadata={"Name": "Series_2"})
    store, sources = keep(tmp_path, path)
    assert planted_in(bodies(store)) == []
    with local_source(store, sources.slides[0].source) as copy, Slide.open(copy) as opened:
        assert (opened.mpp, opened.width, opened.vendor) == (0.5, 256, "ome-tiff")
        assert np.array_equal(opened.read(0, 0, (256, 256), 0.5), picture(2))


def test_all_texts_of_a_tiff_go(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    texts = [(code, 2, 0, "DOE^JANE", True) for code in (269, 271, 33432, 37510, 50839, 65000)]
    wide = "DOE^JANE".encode("utf-16-le")
    packed = [(code, 1, len(wide), wide, True) for code in (700, 34377, 40093)]
    tifffile.imwrite(path, picture(2), photometric="rgb", metadata=None, software="DOE^JANE",
                     description="Patient: DOE^JANE", datetime=True,
                     extratags=texts + packed)  # fmt: skip
    path.write_bytes(path.read_bytes() + b"DOE^JANE")
    assert path.read_bytes().count(b"DOE^JANE") == 9
    assert b"DOE^JANE" not in copied(path)
    assert wide not in copied(path)


def test_the_label_of_a_ventana_slide_goes(tmp_path: Path) -> None:
    path = write_ventana(tmp_path / "a.bif", picture(), 1.0)
    data = path.read_bytes()
    path.write_bytes(data.replace(b'UnitNumber="1"', b'Barcode1Dx="1"'))
    with tifffile.TiffFile(path) as file:
        label = file.pages.first
        places = list(zip(label.dataoffsets, label.databytecounts, strict=True))
    store, sources = keep(tmp_path, path)
    assert b"Barcode1D" not in bodies(store)
    assert not any(any(bodies(store)[at : at + size]) for at, size in places)
    same_but_for_asides(store, sources, path, set())


def test_the_copy_of_an_ome_zarr_has_its_largest_image_alone(tmp_path: Path) -> None:
    root = tmp_path / "a.zarr"
    for name, step in (("0", 1), ("1", 8)):
        write_zarr(root / name, picture(step), version="0.4", levels=1, compressors=None)
    (root / ".zgroup").write_text('{"zarr_format": 2}')
    (root / "OME").mkdir()
    for file in ("OME/METADATA.ome.xml", "notes.txt", "0/0/DOE^JANE", "0/0/.zattrs"):
        (root / file).write_text('{"name": "DOE^JANE"}')
    stated = root / "0/.zattrs"
    stated.write_text(stated.read_text().replace('"a"', '"DOE^JANE"'))
    store, sources = keep(tmp_path, root)
    assert planted_in(bodies(store)) == []
    kept = [key.partition("a.zarr/")[2] for key in store.list("sources/")]
    assert {name for name in kept if not name.startswith("0/0/0")} == {
        ".zgroup", "0/.zgroup", "0/.zattrs", "0/0/.zarray"
    }  # fmt: skip
    (source,) = sources.slides
    with local_source(store, source.source) as copy, Slide.open(copy) as opened:
        check_content(copy, source.parts, source.sha256 or "", "the copy")
        assert opened.mpp == 0.5
        assert np.array_equal(opened.read(0, 0, (512, 512), 0.5), picture())


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_texts_of_plain_images_go(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[270] = "DOE^JANE"
    options: dict[str, Any] = {"comment": "DOE^JANE"} if suffix == "jpg" else {"lossless": True}
    Image.fromarray(picture(4)).save(path, exif=exif, **options)
    path.write_bytes(path.read_bytes() + b"DOE^JANE")
    before = np.asarray(Image.open(path))
    path.write_bytes(copied(path))
    assert b"DOE^JANE" not in path.read_bytes()
    with Slide.open(path, mpp=1) as opened:
        assert np.array_equal(opened.read(0, 0, (128, 128), 1), before)
    exif[274] = 6
    Image.fromarray(picture(4)).save(path, exif=exif, **options)
    with pytest.raises(InputError, match="stored turned"):
        redactions(path)


@pytest.mark.parametrize("file", SHOWN)
def test_real_slides_read_the_same(real_data: Path, tmp_path: Path, file: str) -> None:
    path = real_data / "wsi" / file
    store, sources = keep(tmp_path, path)
    with (
        local_source(store, sources.slides[0].source) as copy,
        openslide.OpenSlide(path) as one,
        openslide.OpenSlide(copy) as other,
    ):
        assert not {"label", "macro"} & set(other.associated_images)
        assert one.level_dimensions == other.level_dimensions
        for level in range(one.level_count):
            parts = [each.read_region((0, 0), level, (256, 256)) for each in (one, other)]
            assert np.array_equal(*parts)
