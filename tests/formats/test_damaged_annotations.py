"""Annotations with random damage: they are drawn, or refused by an `InputError`."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.ingest.annotations.outlines import SlideGeometry
from services.ingest.annotations.writing import write_annotation
from shared.contracts.annotations import FORMATS, LabelFormat
from shared.contracts.base import Classes
from shared.errors import InputError
from tests.formats.drawing import draw

CLASSES = Classes.of("tumor", "stroma")
SLIDE = SlideGeometry(60, 40, 1.0, 1.0, bounds=(5, 5, 50, 30), offset_nm=(10.0, 20.0))

FILES: list[tuple[LabelFormat, str]] = [
    (kind.name, suffix) for kind in FORMATS if kind.written for suffix in kind.suffixes
]

WORDS = (
    b"nan", b"1e999", b"-1", b"99999999999999999999", b"", b"\x00", b"\xff\xfe", b"null", b"[[",
    b"{}", b"true", b'"', b"<", b"/>", b"&", b"0,5", b"Ellipse", b"Spline", b"Rectangle", b"\x80",
)  # fmt: skip


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(data) + 1))
        length = int(rng.integers(0, 12))
        data[at : at + length] = WORDS[int(rng.integers(len(WORDS)))]
    return bytes(data[: int(rng.integers(1, len(data) + 1))] if rng.random() < 0.1 else data)


@pytest.mark.parametrize(("kind", "suffix"), FILES)
def test_damage_ends_in_an_input_error(kind: LabelFormat, suffix: str, tmp_path: Path) -> None:
    labels = np.zeros((40, 60), np.uint8)
    labels[5:30, 5:40], labels[10:20, 10:30] = 1, 2
    path = tmp_path / f"a{suffix}"
    write_annotation(path, kind, labels, 1.0, CLASSES, SLIDE)
    content = path.read_bytes()
    rng = np.random.default_rng(len(suffix))
    for _ in range(30):
        path.write_bytes(damaged(content, rng))
        with contextlib.suppress(InputError):
            draw(path, CLASSES, slide=SLIDE)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["tumor", "Polygon"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["type", "geometry", "coordinates", "geometries", "features", "properties",
                         "classification", "names", "name", "id", "objectType"]),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(content=JSON)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_json_ends_in_an_input_error(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    wrapped = {"geometry": {"type": "Polygon", "coordinates": content}, "properties": content}
    for item in (content, [content], [wrapped]):
        path.write_text(json.dumps(item))
        with contextlib.suppress(InputError):
            draw(path, CLASSES, slide=SLIDE)
