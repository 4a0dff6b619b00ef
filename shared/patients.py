"""Patients and sites that the names of slides tell."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

_KNOWN = (
    re.compile(r"(?i)(?<![A-Z0-9])(?P<patient>TCGA-(?P<site>[A-Z0-9]{2})-[A-Z0-9]{4})(?![A-Z0-9])"),
    re.compile(r"(?<![A-Z0-9])(?P<patient>C3[LN]-\d{5})(?!\d)"),  # CPTAC
    re.compile(r"(?<![A-Z0-9])(?P<patient>GTEX-[A-Z0-9]{4,5})(?![A-Z0-9])"),
    re.compile(r"(?<![A-Za-z0-9])(?P<patient>patient_\d{3})_node_\d"),  # Camelyon17
)

_BLOCK = re.compile(r"[-_. ]+(?:DX|TS|BS|MS)\w{1,2}$|[-_. ]+[A-Ha-hLR]$|(?<=\d)[A-Ha-hLR]$")
"""The end of a name that tells slides, blocks or sides of one patient apart."""

_COUNT = re.compile(
    r"(?i)(?<=\w)[-_. ]+(?:(?P<word>slide|section|block|level|image|img|s|b|l)[-_. ]*)?\d{1,2}$"
)
"""A number at the end, which may also count patients: it tells nothing unless the rest has one."""

_COUNTED = re.compile(
    r"(?i)[A-OQ-Z][12]\d"
    r"|(?!p|case|subj|donor)[A-Z]*[-_. ]?20[0-3]\d"
    r"|(?:site|cent(?:er|re)|hospital|clinic|cohort|batch)[-_. ]?\d{1,2}"
)
"""What has patients counted after it: a year, as in the case numbers S21-01 and LUAD2024-12, or a
site. P12 is a patient."""

_PART = re.compile(
    r"(?i)(?<=\w)[-_. ]+(?:[A-OQ-Z]\d{1,2}|C\d{4}_B\d{3}|\d{1,2}x"
    r"|(?:HE|HES|H&E|IHC|PAS|ER|PR|AR|SMA|S100|SOX10|TTF1|GATA3"
    r"|CD\d{1,3}|CK\d{1,3}|KI(?:[-_.]?67)?|HER(?:[-_.]?2)?|PD(?:[-_.]?L?1)?|P16|P21|P40|P53|P63"
    r"|MLH1|PMS2|MSH[26]|EVG|MASSON|tumou?r|normal|T|N|LN"
    r"|pre|post|train|val|test)\d{0,2})$"
)
"""A block (A1; TIGER's C0001_B101), a stain (HE2), a kind of tissue, a time, a magnification or a
split at the end, which tells nothing unless the rest has a digit. P12 is no block, but a patient.
"""

_HASH = re.compile(r"(?<!^slide)-(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{6}$")
"""Digits that the name of a slide got because others had it too, or because it lost signs."""

_PLACE = re.compile(
    r"(?i)(?<=\w)(?:"
    r"(?<!^20[0-3]\d)(?:[-_. ]+(?:0|\d{3,})){2,4}"  # slide_0_2048, but not 2021_0123_001
    r"(?:-\[?[01](?:[- ][01]){2}\]?)?"  # and labels of the tile, -[1 0 0]
    r"|(?:[-_. ,]+(?:[xy](?:min|max)?|w|h|row|col|r|c)[-_. =]*\d+){2,4}"  # _x3_y17, [x=0,y=512,…]
    r"|[-_. ]+(?:tile|patch|crop|roi|region|fov)[-_. ]*\d+"
    r")(?:-[0-9a-f]{6})?$"
)
"""The end of a tile's name, which tells its place on the slide; perhaps with digits of a hash."""


_NUMBER = re.compile(r"^0*(\d+)(?:\.0+)?$", re.ASCII)
"""A number that counts patients, with what spreadsheets add to it or leave out."""


class Origin(NamedTuple):
    """Patient of a slide, and its site if the name tells that too."""

    patient: str | None
    site: str | None


def folded(identifier: str) -> str:
    """Return the identifier of a patient or a site as identifiers are compared.

    Spellings that differ in case, white space, Unicode form, or in what spreadsheets make of a
    number (007, 7, 7.0) are one. To join two patients in error costs little; to divide one makes
    all figures too good.
    """
    text = " ".join(unicodedata.normalize("NFKC", identifier).casefold().split())
    text = unicodedata.normalize("NFKC", text)
    return _NUMBER.sub(r"\1", text)


def known_origin(name: str) -> Origin | None:
    """Return the patient and the site that a well-known form of name states.

    Known are the barcodes of TCGA (patient and tissue source site), CPTAC and GTEx, and the
    names of Camelyon17.

    Args:
        name: name of a slide or of its file.
    """
    return next(iter(_known_origins(name)), None)


def _known_origins(name: str) -> dict[Origin, None]:
    """Return all patients that a name states in a well-known form, each once."""
    found: dict[Origin, None] = {}
    for pattern in _KNOWN:
        for match in pattern.finditer(name):
            parts = match.groupdict()
            if site := parts.get("site"):
                found[Origin(parts["patient"].upper(), site.upper())] = None
            else:
                found[Origin(parts["patient"], None)] = None
    return found


def origin_of(name: str, patient: str | None, site: str | None) -> Origin:
    """Return patient and site of a slide: those given, or else what well-known names state.

    A barcode that is given as patient may be that of a sample or a slide, of which a patient has
    several (TCGA-AA-0001-01A, TCGA-AA-0001-11A), or stand there twice: the patient in it counts.

    Args:
        name: name of the slide or of its file.
        patient: the patient that is given, whose barcode may state the site; None: none.
        site: the site that is given; None: none.
    """
    named = known_origin(name) or Origin(None, None)
    stated = _known_origins(patient or "")
    by_patient = next(iter(stated)) if len(stated) == 1 else Origin(None, None)
    return Origin(
        by_patient.patient or patient or named.patient, site or by_patient.site or named.site
    )


def alike(names: Iterable[str]) -> dict[str, list[str]]:
    """Group names that look like several slides, or tiles, of one patient: case12-a, case12-b.

    Returns:
        What the names of a group have in common → the names; only groups of two and more.
    """
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    every = sorted(names)
    for name in every:
        own = _HASH.sub("", name)
        stem = _stem(own)
        if stem and (stem != name or _has_digit(name)):  # case12 may be beside case12-a
            groups[stem][name] = own
    # Where all names differ in their ends alone, as in slide-a and slide-b, the rest means nothing.
    return {
        stem: list(members)
        for stem, members in groups.items()
        if len(members) > 1
        and (
            len(members) < len(every)
            or _has_digit(stem)
            or len(set(members.values())) < len(members)
        )
    }


def _stem(name: str) -> str:
    """Return a name without what tells tiles, sections, blocks and stains of a patient apart."""
    whole = _PLACE.sub("", name)
    stem = _BLOCK.sub("", whole)
    if stem == whole and (count := _COUNT.search(whole)):
        counted = whole[: count.start()]
        if _has_digit(counted) and (count["word"] or not _COUNTED.fullmatch(counted)):
            stem = counted
    while (shorter := _PART.sub("", stem)) != stem and _has_digit(shorter):
        stem = shorter
    return stem


def _has_digit(text: str) -> bool:
    return any(sign.isdigit() for sign in text)
