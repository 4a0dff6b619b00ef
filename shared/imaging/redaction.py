"""What the copy of a slide leaves out: label and macro images, and text that names people.

A copy differs from its source only in the bytes that `redactions` lists: pixels of label and macro
images become zeros, identifying text becomes blanks, and directories of such images are unlinked.
The length of the file, and the pixels of its levels, stay.

Known are Aperio SVS, Hamamatsu NDPI, Leica SCN, other TIFFs whose label and macro images are
called so, DICOM, and the formats of `redaction_scanners`. Slides of other formats, and those whose
label is not found, are not copied (`unknown`).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

import tifffile
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import RawDataElement

from shared.errors import InputError
from shared.imaging.redaction_scanners import in_scanner_file, is_spare
from shared.imaging.tiff_facts import TIFF_ERRORS, is_tiff
from shared.storage import Patch

UNKNOWN = {".isyntax", ".i2syntax"}
"""Suffixes of formats whose label and macro images are not found."""

APERIO_KEPT = {
    b"appmag", b"mpp", b"left", b"top", b"linecameraskew", b"lineareaxoffset", b"lineareayoffset",
    b"focus offset", b"stripewidth", b"originalwidth", b"originalheight", b"displaycolor",
    b"icc profile", b"parmset", b"exposure time", b"exposure scale", b"gamma", b"total depth",
}  # fmt: skip
"""Fields of Aperio's description that name nobody; all others are blanked."""

TEXT_TAGS = {269, 285, 306, 315, 316, 33723, 65427}
"""DocumentName, PageName, DateTime, Artist, HostComputer, IPTC, and Hamamatsu's slide label."""

XML_TAGS = {270, 700, 65449}
"""ImageDescription, XMP, and Hamamatsu's list of properties."""

_NAMES = (
    rb"[\w.: -]*(?:bar_?code|patient|accession|slide_?id|slide_?name|slide_?label|sample_?id|"
    rb"specimen|case_?(?:id|no|number|name)|operator|user_?name|physician|institution|hospital|"
    rb"birth|IMAGE_DATA)[\w.: -]*"
)
_FIELDS = (
    re.compile(rb"(?i)\b" + _NAMES + rb'\s*=\s*"([^"]*)"'),
    re.compile(rb"(?i)<" + _NAMES + rb"(?:\s[^>]*)?>([^<]+)<"),
    re.compile(rb'(?i)<Attribute\s[^>]*"' + _NAMES + rb'"[^>]*>([^<]+)<'),
    re.compile(rb"(?im)^" + _NAMES + rb"=([^\r\n\"]+)$"),
)
"""Attributes and elements of XML, Philips' attributes, and lines <name>=<value>."""

_APERIO_FIELD = re.compile(rb"\|([^|=\0]+?)\s*=([^|\0]*)")
_QPTIFF_KIND = re.compile(r"<ImageType>\s*(?:Label|Overview|Macro)")

DICOM_NAMES = {
    "PatientName", "PatientID", "PatientBirthDate", "PatientBirthTime", "OtherPatientIDs",
    "OtherPatientNames", "PatientAddress", "PatientTelephoneNumbers", "PatientComments",
    "IssuerOfPatientID", "AccessionNumber", "ReferringPhysicianName", "PerformingPhysicianName",
    "PhysiciansOfRecord", "OperatorsName", "InstitutionName", "InstitutionAddress",
    "InstitutionalDepartmentName", "StationName", "StudyID", "StudyDescription",
    "SeriesDescription", "StudyDate", "SeriesDate", "ContentDate", "AcquisitionDate",
    "AcquisitionDateTime", "AdmissionID", "RequestingPhysician", "RequestedProcedureDescription",
    "ContainerIdentifier", "SpecimenIdentifier", "SpecimenShortDescription",
    "SpecimenDetailedDescription", "SpecimenLabelInImage", "BarcodeValue", "LabelText",
    "DeviceSerialNumber", "ImageComments", "FillerOrderNumberImagingServiceRequest",
    "PlacerOrderNumberImagingServiceRequest",
}  # fmt: skip
"""Elements that may name the patient, the specimen, people or places; most are of PS3.15, E.1."""

TEXT_VRS = {"AE", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UT"}


def redactions(path: Path) -> list[Patch]:
    """Return how a copy of a slide's file differs from it: patches that do not overlap, in order.

    Nothing is changed in files that cannot be parsed: ingest refuses them.

    Raises:
        InputError: its label and macro images cannot be found.
        OSError: the file cannot be read.
    """
    if path.suffix.lower() in UNKNOWN:
        raise InputError("they are not known in this format")
    if (found := in_scanner_file(path, _FIELDS)) is not None:
        return _disjoint(found)
    if is_tiff(path):
        try:
            with tifffile.TiffFile(path, _multifile=False) as tiff:
                return _disjoint(_in_tiff(tiff))
        except TIFF_ERRORS:
            return []
        except (ParseError, DefusedXmlException, StopIteration) as error:
            raise InputError("its XML is damaged") from error
    return _disjoint(_in_dicom(path)) if _is_dicom(path) else []


def _disjoint(patches: Iterable[Patch]) -> list[Patch]:
    """Sort patches, and cut off what they have in common; pages may share the value of a tag."""
    kept: list[Patch] = []
    done = 0
    for offset, data in sorted(patches):
        if offset + len(data) > done:
            start = max(offset, done)
            kept.append(Patch(start, data[start - offset :]))
            done = offset + len(data)
    return kept


def is_left_out(main: Path, part: Path) -> bool:
    """Say whether a copy of a slide lacks one of its files, such as its label or macro image.

    Args:
        main: the slide's main file.
        part: the other file.

    Raises:
        OSError: a file cannot be read.
    """
    return is_spare(main, part) or _is_dicom_label(part)


def _is_dicom_label(path: Path) -> bool:
    if not _is_dicom(path):
        return False
    header = dcmread(path, stop_before_pixels=True, specific_tags=["ImageType"])
    return bool({"LABEL", "OVERVIEW"} & set(header.get("ImageType") or ()))


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def apply(path: Path, patches: Sequence[Patch]) -> None:
    """Write patches into a file."""
    with path.open("r+b") as file:
        for patch in patches:
            file.seek(patch.offset)
            file.write(patch.data)


def _in_tiff(tiff: Any) -> Iterator[Patch]:
    pages = list(tiff.pages)
    aside = {number for number in range(1, len(pages)) if _is_aside(tiff, pages, number)}
    named = _named_aside(tiff) | _leica_aside(tiff, pages)
    for number, page in enumerate(pages):
        for tag in page.tags:
            yield from _in_tag(tiff, tag)
        if number in aside or page.offset in named:
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                yield Patch(int(offset), bytes(int(count)))
    kept = [page for number, page in enumerate(pages) if number not in aside]
    following = {page.offset: after.offset for page, after in pairwise(pages)}
    for page, after in zip(kept, [*kept[1:], None], strict=True):
        target = after.offset if after is not None else 0
        if following.get(page.offset, 0) != target:
            yield Patch(_link(tiff, page), struct.pack(tiff.tiff.offsetformat, target))


def _is_aside(tiff: Any, pages: Sequence[Any], number: int) -> bool:
    """Say whether a page is a label or macro image, which no level is."""
    page = pages[number]
    if tiff.is_ndpi:
        lens = page.tags.valueof(65421)
        return lens is not None and lens < 0
    if page.is_tiled and 4 * _area(page) > _area(pages[0]):
        return False
    lines = page.description.strip().lower().splitlines() or [""]
    if pages[0].is_svs:
        called = len(lines) > 1 and lines[1].startswith(("label", "macro"))
        return not page.is_tiled and (called or int(page.subfiletype) in {1, 9} or number > 1)
    return lines[0].startswith(("label", "macro")) or bool(_QPTIFF_KIND.search(page.description))


def _area(page: Any) -> int:
    return int(page.imagewidth) * int(page.imagelength)


def _named_aside(tiff: Any) -> set[int]:
    """Return the offsets of the pages of an OME-TIFF's images called label or macro.

    OME-XML counts directories, so they stay linked.
    """
    if not tiff.is_ome:
        return set()
    return {
        page.offset
        for series in tiff.series[1:]
        if series.name.strip().lower().startswith(("label", "macro"))
        for page in series.pages
        if page is not None
    }


def _leica_aside(tiff: Any, pages: Sequence[Any]) -> set[int]:
    """Return the offsets of the pages of an SCN's macro image, which shows the whole glass.

    Its XML counts directories, so they stay linked.
    """
    if not tiff.is_scn:
        return set()
    root = fromstring(pages[0].description, forbid_dtd=True)
    found: set[int] = set()
    for item in root.iter():
        name = item.tag.rpartition("}")[2]
        if name == "supplementalImage":
            found.add(int(item.attrib["ifd"]))
        if name != "collection":
            continue
        for image in (part for part in item if part.tag.endswith("}image")):
            view = next(part for part in image if part.tag.endswith("}view"))
            whole = all(view.get(key) == item.get(key) for key in ("sizeX", "sizeY"))
            if whole and view.get("offsetX") == view.get("offsetY") == "0":
                parts = (part for part in image.iter() if part.tag.endswith("}dimension"))
                found |= {int(part.attrib["ifd"]) for part in parts}
    return {pages[number].offset for number in found}


def _link(tiff: Any, page: Any) -> int:
    """Return the place of the offset of the directory that follows a page's."""
    form = tiff.tiff
    tiff.filehandle.seek(page.offset)
    (count,) = struct.unpack(form.tagnoformat, tiff.filehandle.read(form.tagnosize))
    return int(page.offset + form.tagnosize + count * form.tagsize)


def _in_tag(tiff: Any, tag: Any) -> Iterator[Patch]:
    if tag.code not in TEXT_TAGS | XML_TAGS or tag.dtype not in {1, 2, 7}:
        return
    tiff.filehandle.seek(tag.valueoffset)
    text = tiff.filehandle.read(tag.count)
    if tag.code in TEXT_TAGS:
        yield Patch(tag.valueoffset, b" " * (len(text) - 1) + b"\0")
        return
    spans = [found.span(1) for field in _FIELDS for found in field.finditer(text)]
    if text.startswith(b"Aperio"):
        spans += [
            found.span(2)
            for found in _APERIO_FIELD.finditer(text)
            if found[1].strip().lower() not in APERIO_KEPT
        ]
    for start, stop in spans:
        if text[start:stop].strip(b" "):
            yield Patch(tag.valueoffset + start, b" " * (stop - start))


def _in_dicom(path: Path) -> Iterator[Patch]:
    with path.open("rb") as file:
        try:
            header = dcmread(file, stop_before_pixels=True)
            size = file.tell()
            found = list(_elements(header, 0))
        except OSError:
            raise
        # pydicom raises errors of many kinds for damaged headers.
        except Exception:
            return
        file.seek(0)
        start = file.read(size)
    for offset, value, text in found:
        if value and start[offset : offset + len(value)] == value:
            yield Patch(offset, (b" " if text else b"\0") * len(value))


def _elements(dataset: Dataset, base: int) -> Iterator[tuple[int, bytes, bool]]:
    """Yield offset, value and whether it is text, of all elements that may name somebody.

    Args:
        dataset: a header, or an item of a sequence.
        base: offset in the file from which the places of the dataset's elements count.
    """
    for tag in list(dataset.keys()):
        raw = dataset.get_item(tag)
        if not isinstance(raw, RawDataElement):  # a sequence of undefined length
            if raw is not None and raw.VR == "SQ":
                for item in raw.value:
                    yield from _elements(item, base)
            continue
        keyword = keyword_for_tag(tag)
        vr = raw.VR or (dictionary_VR(tag) if keyword else "UN")
        if vr == "SQ":
            for item in dataset[tag].value:
                yield from _elements(item, base + raw.value_tell)
        elif vr in TEXT_VRS | {"UN"} and (
            keyword in DICOM_NAMES or (tag.is_private and not tag.is_private_creator)
        ):
            yield base + raw.value_tell, bytes(raw.value or b""), vr != "UN"
