"""Copies of slides lack label and macro images and identifying text; their levels are unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from heterotissue.sources import find_slides, slide_sources
from heterotissue.sources.keeping import Sources
from shared.contracts.ingest import CohortRecord, PatchGrid, cohort_key
from shared.imaging.redaction import redactions
from shared.imaging.slide import Slide
from shared.imaging.stored_slides import check_content, local_source, slide_hash
from shared.storage import DirectoryStore
from tests.formats.cohort_files import tissue, write_dicom
from tests.formats.slide_files import picture, resolution, write_leica

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
            assert set(other.associated_images) == {"thumbnail"}
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


def test_formats_that_keep_their_label_say_so(tmp_path: Path) -> None:
    path = write_leica(tmp_path / "a.scn", picture(), 0, 0, 1024, 1024)
    _, sources = keep(tmp_path, path)
    assert sources.notes == [
        "a.scn: the copy in the store keeps label and macro images and what the scanner wrote, "
        "which are not taken out of this format"
    ]


def test_nothing_is_changed_in_files_that_name_nobody(tmp_path: Path) -> None:
    plain = tmp_path / "a.tif"
    tifffile.imwrite(plain, picture(), photometric="rgb", tile=(128, 128), metadata=None)
    assert redactions(plain) == []
    damaged = tmp_path / "b.svs"
    damaged.write_bytes(b"II*\0" + b"\xff" * 40)
    assert redactions(damaged) == []


@pytest.mark.parametrize(
    "file", ["wsi/CMU-1-Small-Region.svs", "wsi/fluorescence.ndpi", "wsi/camelyon_dicom_jpeg.dcm"]
)
def test_real_slides_read_the_same(real_data: Path, tmp_path: Path, file: str) -> None:
    path = real_data / file
    store, sources = keep(tmp_path, path)
    with (
        local_source(store, sources.slides[0].source) as copy,
        openslide.OpenSlide(path) as one,
        openslide.OpenSlide(copy) as other,
    ):
        assert not {"label", "macro"} & set(other.associated_images)
        assert one.level_dimensions == other.level_dimensions
        for level in range(one.level_count):
            size = (256, 256)
            parts = [np.asarray(slide.read_region((0, 0), level, size)) for slide in (one, other)]
            assert np.array_equal(*parts)
