"""Small slides and DICOM series that tests of cohorts ingest, and what the command says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from shared.arrays import UInt8
from shared.contracts.ingest import CohortRecord, cohort_key
from shared.storage import DirectoryStore

WSM = "1.2.840.10008.5.1.4.1.1.77.1.6"


def tissue(seed: int, side: int = 256) -> UInt8:
    """Draw pink and violet tissue on glass: uint8 RGB (side, side, 3), another for each seed."""
    rng = np.random.default_rng(seed)
    image = np.full((side, side, 3), 245.0)
    image[side // 8 : -side // 8, side // 8 : -side // 8] = (225, 150, 190)
    image[side // 3 : -side // 3, side // 2 : -side // 8] = (120, 70, 150)
    return np.asarray((image + rng.normal(0, 6, image.shape)).clip(0, 255), np.uint8)


def write_slide(path: Path, seed: int, side: int = 256) -> Path:
    """Write a plain image of tissue."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(tissue(seed, side)).save(path)
    return path


def write_mask(path: Path, side: int = 256) -> Path:
    """Write a label map of `tissue`: 1 on pink, 2 on violet."""
    mask = np.zeros((side, side), np.uint8)
    mask[side // 8 : -side // 8, side // 8 : -side // 8] = 1
    mask[side // 3 : -side // 3, side // 2 : -side // 8] = 2
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    return path


def write_dicom(
    path: Path, image: UInt8, series: str, patient: str = "", part_of: str | None = None,
    mpp: float = 2, tile: int = 128, kind: str = "VOLUME",
) -> Path:  # fmt: skip
    """Write one level of a whole-slide image as a DICOM instance, uncompressed and tiled.

    Args:
        path: the file.
        image: uint8 RGB (height, width, 3), multiples of `tile`.
        series: SeriesInstanceUID.
        patient: PatientID.
        part_of: ConcatenationUID, for one part of an image in several files.
        mpp: µm per pixel.
        tile: side of a tile, pixels.
        kind: what the instance shows: VOLUME, LABEL or OVERVIEW.
    """
    height, width = image.shape[:2]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = WSM
    meta.MediaStorageSOPInstanceUID = generate_uid(
        entropy_srcs=[series, str(width), str(path.name)]
    )
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = WSM, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID, data.StudyInstanceUID = series, f"{series}.9"
    data.FrameOfReferenceUID = f"{series}.8"
    data.Modality, data.PatientID, data.PatientName = "SM", patient, ""
    data.ImageType = ["ORIGINAL" if tile else "DERIVED", "PRIMARY", kind, "NONE"]
    data.DimensionOrganizationType = "TILED_FULL"
    data.Rows = data.Columns = tile
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = width, height
    data.TotalPixelMatrixFocalPlanes = 1
    data.NumberOfOpticalPaths = 1
    data.SamplesPerPixel, data.PhotometricInterpretation = 3, "RGB"
    data.PlanarConfiguration, data.PixelRepresentation = 0, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    if part_of:
        data.ConcatenationUID, data.InConcatenationNumber = part_of, 1
    measures = Dataset()
    measures.PixelSpacing = [mpp / 1000, mpp / 1000]
    measures.SliceThickness = 0.001
    shared = Dataset()
    shared.PixelMeasuresSequence = Sequence([measures])
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    tiles = [
        image[y : y + tile, x : x + tile].tobytes()
        for y in range(0, height, tile)
        for x in range(0, width, tile)
    ]
    data.NumberOfFrames = len(tiles)
    data.PixelData = b"".join(tiles)
    data["PixelData"].VR = "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


class Outcome:
    """Exit code of a command, its lines and its text, and the store that it wrote to."""

    def __init__(self, code: int, text: str, folder: Path) -> None:
        self.code, self.lines, self.text = code, text.splitlines(), " ".join(text.split())
        self.store = DirectoryStore(folder)

    @property
    def cohort(self) -> CohortRecord:
        return self.store.get_model(cohort_key("c"), CohortRecord)
