"""XML rewritten with the elements and attributes that readers need, in the same length."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import ParseError
from xml.sax.saxutils import escape

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from shared.errors import InputError
from shared.imaging.tiff_facts import UNITS

NUMBERS = r'"?[-+]?\d[\d.]{0,24}(?:[eE][-+]?\d{1,3})?"?'
"""Pattern of a number, which may be quoted."""

VALUE = re.compile(
    rf"\s*(?:{NUMBERS}(?:[\s,]+{NUMBERS})*|0x[0-9a-fA-F]{{4}}|[XYZCTS]{{5,6}}|u?int\d+|float|double"
    r"|true|false|Bgra?\d+|Gray\d+|brightfield|WSI|LEFT|RIGHT|UP|DOWN|X|Y|Z"
    r"|I(?:String|Double|DataObject|U?Int(?:16|32))(?:Array)?|DPUfsImport|DPScannedImage|PixelDataRepresentation|"
    + "|".join(re.escape(unit) for unit in UNITS)
    + r")\s*"
)
"""What an attribute or a text may be: numbers, or a word of the formats themselves."""


@dataclass(frozen=True)
class Element:
    """What stays of an element of a kind.

    Attributes:
        attributes: its attributes that stay, where their value is a `VALUE`. Those called ID or Id
            get new values, the same for the same.
        text: pattern of the part of its text that stays; None: nothing.
        named: pattern of the part of its Name that stays; None: nothing, or, where the attributes
            have Name, all of it.
    """

    attributes: frozenset[str] = frozenset()
    text: re.Pattern[str] | None = None
    named: re.Pattern[str] | None = None


def element(
    *attributes: str, text: re.Pattern[str] | None = None, named: re.Pattern[str] | None = None
) -> Element:
    """Return what stays of an element."""
    return Element(frozenset(attributes), text, named)


NUMBER = re.compile(rf"^\s*{VALUE.pattern}$")
"""Pattern of a text that is a `VALUE` and nothing else."""


def parsed(text: bytes) -> Any:
    """Parse XML. Raises `InputError` if it is damaged."""
    try:
        return fromstring(text, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise InputError("its XML is damaged") from error


def rewritten(text: bytes, kept: Mapping[str, Element]) -> bytes:
    """Rewrite XML, as long as it was.

    Args:
        text: the XML.
        kept: name of an element → what stays of it. An element 'Attribute' of Philips' goes by
            'Attribute <value of Name>'. Others, comments and names of other spaces go.

    Raises:
        InputError: the XML is damaged, or what stays is longer than it was.
    """
    writer = _Writer(kept)
    root = parsed(text)
    first, last = writer.root(root)
    stated = text.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"<?xml")
    start = b'<?xml version="1.0"?>' if stated else b""
    room = len(text) - len(start) - len(first) - len(last)
    if room < 0:
        raise InputError("its XML has no room for what readers need of it")
    return start + first + b" " * room + last


class _Writer:
    def __init__(self, kept: Mapping[str, Element]) -> None:
        self._kept = kept
        self._names: dict[str, str] = {}
        self._space = ""

    def root(self, root: Any) -> tuple[bytes, bytes]:
        """Write all but the end of the root element, and its end."""
        self._space = root.tag.rpartition("}")[0]
        name = self._name(root)
        if name is None:
            raise InputError("its XML is of another kind")
        space = f" xmlns={_quoted(self._space[1:])}" if self._space else ""
        body = self._inner(root)
        first = f"<{name}{space}{self._attributes(root)}>{body}"
        return first.encode(), f"</{name}>".encode()

    def _name(self, item: Any) -> str | None:
        """Return the name of an element that stays; None: it goes."""
        if not isinstance(item.tag, str) or item.tag.rpartition("}")[0] != self._space:
            return None
        name = item.tag.rpartition("}")[2]
        return name if self._key(name, item) in self._kept else None

    @staticmethod
    def _key(name: str, item: Any) -> str:
        return f"Attribute {item.get('Name')}" if name == "Attribute" else name

    def _element(self, item: Any) -> str:
        name = self._name(item)
        if name is None:
            return ""
        inner = self._inner(item)
        start = f"<{name}{self._attributes(item)}"
        return f"{start}>{inner}</{name}>" if inner else f"{start}/>"

    def _inner(self, item: Any) -> str:
        rule = self._rule(item)
        found = rule.text.search(item.text or "") if rule.text is not None else None
        text = escape(found[0]) if found is not None else ""
        return text + "".join(self._element(part) for part in item)

    def _rule(self, item: Any) -> Element:
        return self._kept[self._key(item.tag.rpartition("}")[2], item)]

    def _attributes(self, item: Any) -> str:
        rule = self._rule(item)
        out = ""
        for name, value in item.attrib.items():
            if name == "Name" and rule.named is not None and (part := rule.named.search(value)):
                value = part[0]
            elif name not in rule.attributes:
                continue
            elif name in {"ID", "Id"} and len(value) > 1:
                value = self._names.setdefault(value, f"i{len(self._names)}")
            elif name != "Name" and not VALUE.fullmatch(value):
                continue
            out += f" {name}={_quoted(value)}"
        return out


def _quoted(value: str) -> str:
    quote = "'" if '"' in value and "'" not in value else '"'
    return f"{quote}{escape(value, {quote: '&quot;' if quote == chr(34) else '&apos;'})}{quote}"
