"""Copies of DICOM slides: levels alone, and of each only what readers need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import JPEGBaseline8Bit

from heterotissue.sources import find_slides, slide_sources
from shared.errors import InputError
from shared.imaging.redaction import is_left_out, redactions
from shared.storage import DirectoryStore
from tests.formats.cohort_files import tissue, write_dicom
from tests.formats.scanner_files import encoded

VOLUME = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]


def changed(path: Path, **values: Any) -> Path:
    """Write a level of 256 px, and set attributes of it."""
    data = dcmread(write_dicom(path, tissue(0, 256), "1.2.3", "P"))
    for name, value in values.items():
        setattr(data, name, value)
    data.save_as(path)
    return path


def copied(path: Path) -> bytes:
    data = bytearray(path.read_bytes())
    for offset, new in redactions(path):
        data[offset : offset + len(new)] = new
    return bytes(data)


@pytest.mark.parametrize(
    "values",
    [
        {"ImageType": [*VOLUME[:2], kind, "NONE"]}
        for kind in ("SLIDE_LABEL", "MACRO", "BARCODE", "PREVIEW", "LABEL IMAGE", "", "VOLUME 2")
    ]
    + [
        {"ImageType": None}, {"ImageType": VOLUME[:2]}, {"ImageType": [*VOLUME[:3], "LABEL"]},
        {"SpecimenLabelInImage": "YES"}, {"SpecimenLabelInImage": "yes"},
        {"SpecimenLabelInImage": "MAYBE"}, {"BurnedInAnnotation": "YES"},
    ],
)  # fmt: skip
def test_only_levels_are_copied(values: dict[str, Any], tmp_path: Path) -> None:
    path = changed(tmp_path / "a.dcm", **values)
    assert is_left_out(path, path)
    with pytest.raises(InputError, match="no level of a slide"):
        redactions(path)


def test_files_that_are_left_out_are_named(tmp_path: Path) -> None:
    main = changed(tmp_path / "a.dcm")
    wider = write_dicom(tmp_path / "b.dcm", tissue(1, 512), "1.2.3", kind="MACRO")
    found = find_slides([tmp_path])
    assert [entry.path for entry in found.slides] == [main]
    sources = slide_sources(DirectoryStore(tmp_path / "store"), found, use_labels=False)
    assert sources.slides[0].parts == ()
    assert any(note.endswith(wider.name) for note in sources.notes)


def test_a_part_of_a_level_may_name_itself_a_label(tmp_path: Path) -> None:
    kind = Dataset()
    kind.FrameType = [*VOLUME[:2], "LABEL", "NONE"]
    path = changed(tmp_path / "a.dcm", WholeSlideMicroscopyImageFrameTypeSequence=Sequence([kind]))
    with pytest.raises(InputError, match="no level of a slide"):
        redactions(path)


def test_values_are_of_the_kind_that_dicom_says(tmp_path: Path) -> None:
    optics = Dataset()
    optics.ICCProfile = b"DOE^JANE"
    words = ("Modality", "ColorSpace", "FocusMethod", "LossyImageCompressionMethod")
    file = changed(
        tmp_path / "a.dcm", ICCProfile=b"DOE^JANE", OpticalPathSequence=Sequence([optics]),
        **dict.fromkeys(words, "DOE^JANE"),
    )  # fmt: skip
    data = dcmread(file)
    data.add_new("DimensionIndexValues", "UL", np.frombuffer(b"DOE^JANE" * 9, "<u4").tolist())
    data.save_as(file)
    assert file.read_bytes().count(b"DOE^JANE") == 15
    copy = tmp_path / "copy.dcm"
    copy.write_bytes(copied(file))
    assert b"DOE^JANE" not in copy.read_bytes()
    with openslide.OpenSlide(copy) as opened:
        pixels = np.asarray(opened.read_region((0, 0), 0, (256, 256)))
        assert np.array_equal(pixels[..., :3], tissue(0, 256))
    data.add_new("PixelPaddingValue", "OB", b"DOE^JANE")
    data.save_as(file)
    assert b"DOE^JANE" not in copied(file)


def test_pixels_end_with_their_frames(tmp_path: Path) -> None:
    path = changed(tmp_path / "a.dcm")
    pixels = dcmread(path).PixelData
    changed(path, PixelData=pixels + b"DOE^JANE")
    assert b"DOE^JANE" not in copied(path)
    assert pixels in copied(path)
    changed(path, NumberOfFrames=5, PixelData=pixels + pixels[: 128 * 128 * 3])
    with pytest.raises(InputError, match="5 frames, but 4 tiles"):
        redactions(path)


def test_compressed_pixels_are_one_piece_a_frame(tmp_path: Path) -> None:
    path = changed(tmp_path / "a.dcm")
    data = dcmread(path)
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    frames = [encoded(tissue(0, 128), "JPEG")] * 5
    for count in (4, 5):
        data.PixelData = encapsulate(frames[:count], has_bot=count == 4)
        data["PixelData"].is_undefined_length = True
        data.save_as(path)
        if count == 4:
            assert copied(path).endswith(data.PixelData[-99:] + path.read_bytes()[-8:])
    with pytest.raises(InputError, match="5 pieces of pixels for 4 frames"):
        redactions(path)
