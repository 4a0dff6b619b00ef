"""Draws the label map of an annotation, on a slide of 1 µm/px that needs no file."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from services.ingest.annotations import sandboxed
from services.ingest.annotations.drawing import draw_labels
from services.ingest.annotations.outlines import SlideGeometry
from shared.contracts.base import Classes
from shared.contracts.ingest import IngestRequest, SlideSource
from shared.contracts.regions import RegionRule
from shared.imaging.label_map import LabelMap

CLASSES = Classes.of("tumor", "stroma")
WIDTH, HEIGHT = 500, 400


def draw(
    path: Path,
    classes: Classes = CLASSES,
    *,
    slide: SlideGeometry | None = None,
    tissue: NDArray[np.bool_] | None = None,
    label_format: Any = None,
    **fields: Any,
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Return the label map, and the record of what was painted; `fields` are of the request.

    Outlines are parsed in this process, which is faster; ingest parses them in the sandbox.
    """
    source = SlideSource(slide="s", source="s", labels=str(path), label_format=label_format)
    regions = RegionRule(size=64, mpp=fields.pop("mpp", 1.0))
    request = IngestRequest(
        cohort="c", slides=(source,), classes=classes, regions=regions, **fields
    )
    slide = slide or SlideGeometry(WIDTH, HEIGHT, 1.0, 1.0)
    tissue = np.ones((8, 10), np.bool_) if tissue is None else tissue
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "labels.tif"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sandboxed, "read_document", _in_process)
            record = draw_labels(file, path, slide, tissue, source, request)
        with LabelMap(file) as labels:
            return labels.whole(), record


def _in_process(opener: str, path: Path, *arguments: Any) -> Any:
    document = sandboxed.parse(path, *arguments)
    return json.loads(document.read(0, document.facts["bytes"]).tobytes())


def painted(path: Path, *args: Any, **fields: Any) -> list[int]:
    """Return the number of pixels of each class but background."""
    classes = args[0] if args else CLASSES
    counts = np.bincount(draw(path, *args, **fields)[0].ravel(), minlength=len(classes))
    return [int(count) for count in counts[1:]]
