"""Marks of synthetic pictures: XMP in a PNG, JPEG or TIFF says that a model made it, and which.

The words are those of the IPTC's Digital Source Type and of its fields for generative AI.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Literal, NamedTuple, get_args
from xml.etree.ElementTree import ParseError
from xml.sax.saxutils import quoteattr

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from shared.errors import InputError
from shared.imaging.pictures import PICTURE_ERRORS, open_picture
from shared.imaging.tiff_facts import is_tiff, tiff_xmp

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
DC = "http://purl.org/dc/elements/1.1/"
TERMS = "http://purl.org/dc/terms/"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"

SYSTEM = "HeteroTissue"
MAX_XMP = 1 << 20
"""Largest packet that is parsed, bytes."""

HEAD = 33
"""Bytes of a PNG's signature and of its first chunk, IHDR, behind which others may stand."""

SourceType = Literal["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"]
"""A picture by a model; a composite of such pictures and others, as the sheet of a report is."""


class Mark(NamedTuple):
    """What a synthetic picture says of itself.

    Attributes:
        model: `<name>/<version>` of the model.
        dataset: name of its dataset, if it has one.
        key: key of the image in the dataset.
        source: its Digital Source Type.
        system: name of the program whose model it is; empty if it is not stated.
    """

    model: str
    dataset: str | None = None
    key: str | None = None
    source: SourceType = "trainedAlgorithmicMedia"
    system: str = SYSTEM

    @property
    def known(self) -> Mark:
        """The mark without names that another program wrote, as they may be of patients."""
        return self if self.system == SYSTEM else UNNAMED._replace(source=self.source)


UNNAMED = Mark("", system="")
"""The mark of a picture of which it is not known which model made it."""

PARTLY = UNNAMED._replace(source="compositeWithTrainedAlgorithmicMedia")
"""The mark of a picture that shows others, some of which are synthetic."""


def mark_xmp(mark: Mark) -> bytes:
    """Return the XMP packet of a mark, for any format that holds one."""
    facts = {
        "Iptc4xmpExt:DigitalSourceType": SOURCE_TYPES + mark.source,
        "Iptc4xmpExt:AISystemUsed": mark.system,
        "Iptc4xmpExt:AISystemVersionUsed": mark.model,
        "dcterms:isPartOf": mark.dataset,
        "dc:identifier": mark.key,
    }
    stated = "".join(f" {name}={quoteattr(value)}" for name, value in facts.items() if value)
    packet = (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}">'
        f'<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="{IPTC}" xmlns:dc="{DC}" '
        f'xmlns:dcterms="{TERMS}"{stated}/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    )
    return packet.encode()


def mark_png(png: bytes, mark: Mark) -> bytes:
    """Return a PNG with a mark; its pixels stay, and equal arguments give equal bytes."""
    # iTXt: keyword, not compressed, no language, no translated keyword, text.
    body = b"iTXt" + b"XML:com.adobe.xmp" + b"\0" * 5 + mark_xmp(mark)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return png[:HEAD] + chunk + png[HEAD:]


def kept_xmp(xmp: bytes) -> bytes:
    """Return an XMP packet with the mark of another one and nothing else, in as many bytes.

    It is empty if the other one states no mark.
    """
    mark = parse_mark(xmp)
    if mark is None:
        return b""
    shortest = (
        f'<RDF xmlns="{RDF}"><Description xmlns:i="{IPTC}" '
        f'i:DigitalSourceType="{SOURCE_TYPES}{mark.source}"/></RDF>'
    )
    packets = (mark_xmp(mark.known), shortest.encode())
    return next((own.ljust(len(xmp)) for own in packets if len(own) <= len(xmp)), b"")


def mark_of(path: Path) -> Mark | None:
    """Return the mark of a slide or picture; None if it states none. Only the sandbox calls it."""
    if path.is_dir():
        return None
    try:
        if is_tiff(path):
            xmp = tiff_xmp(path)
        else:
            with open_picture(path) as picture:
                xmp = picture.info.get("xmp", b"")
    except (InputError, *PICTURE_ERRORS):  # whoever reads its pixels says so
        return None
    return parse_mark(xmp)


def parse_mark(xmp: str | bytes) -> Mark | None:
    """Return the mark in an XMP packet; None if it states none, or cannot be read."""
    if len(xmp) > MAX_XMP:
        return None
    try:
        root = fromstring(xmp, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError):
        return None
    facts: dict[str, str] = {}
    for item in root.iter(f"{{{RDF}}}Description"):
        facts |= item.attrib
        # Programmes that rewrite a packet may turn attributes into elements.
        facts |= {child.tag: child.text.strip() for child in item if child.text}
    stated = facts.get(f"{{{IPTC}}}DigitalSourceType", "")
    kind = next((each for each in get_args(SourceType) if stated == SOURCE_TYPES + each), None)
    if kind is None:
        return None
    return Mark(
        facts.get(f"{{{IPTC}}}AISystemVersionUsed", ""),
        facts.get(f"{{{TERMS}}}isPartOf"),
        facts.get(f"{{{DC}}}identifier"),
        kind,
        facts.get(f"{{{IPTC}}}AISystemUsed", ""),
    )
