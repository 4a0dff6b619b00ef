"""Marks of synthetic pictures: XMP in a PNG or TIFF says that a model made it, and which.

The words are those of the IPTC's Digital Source Type and of its fields for generative AI.
"""

from __future__ import annotations

import struct
import zlib
from typing import Literal, NamedTuple, get_args
from xml.etree.ElementTree import ParseError
from xml.sax.saxutils import quoteattr

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
DC = "http://purl.org/dc/elements/1.1/"
TERMS = "http://purl.org/dc/terms/"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"

SYSTEM = "HeteroTissue"
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
    """

    model: str
    dataset: str | None = None
    key: str | None = None
    source: SourceType = "trainedAlgorithmicMedia"


def mark_xmp(mark: Mark) -> bytes:
    """Return the XMP packet of a mark, for any format that holds one."""
    facts = {
        "Iptc4xmpExt:DigitalSourceType": SOURCE_TYPES + mark.source,
        "Iptc4xmpExt:AISystemUsed": SYSTEM,
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


def parse_mark(xmp: str | bytes) -> Mark | None:
    """Return the mark in an XMP packet; None if it states none, or cannot be read."""
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
        facts.get(f"{{{IPTC}}}AISystemVersionUsed") or facts.get(f"{{{IPTC}}}AISystemUsed", ""),
        facts.get(f"{{{TERMS}}}isPartOf"),
        facts.get(f"{{{DC}}}identifier"),
        kind,
    )
