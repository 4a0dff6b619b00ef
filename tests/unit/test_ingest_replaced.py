"""A slide or an annotation that is replaced while its ingest runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from services.ingest import stage
from shared.imaging.region_sets import RegionIndex, load_region_set
from shared.storage import DirectoryStore
from tests.unit.test_ingest import ingest, source, truth, write_labels, write_slide


@pytest.mark.parametrize("replaced", ["slide", "labels"])
def test_what_is_replaced_while_it_is_read_is_not_ingested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: str
) -> None:
    """Else the record has the hash of the new file, and everything else is of the old one."""
    store, slide = DirectoryStore(tmp_path / "store"), write_slide(tmp_path)
    labels = write_labels(tmp_path)["png"]
    unchanged = {name: getattr(stage, name) for name in ("find_tissue", "draw_labels")}

    def replace(*arguments: Any) -> Any:
        made = unchanged["find_tissue" if replaced == "slide" else "draw_labels"](*arguments)
        if replaced == "slide":
            (tmp_path / "new").mkdir(exist_ok=True)
            write_slide(tmp_path / "new", mpp=0.5).replace(slide)
        else:
            Image.fromarray(np.flipud(truth())).save(labels)
        return made

    name = "find_tissue" if replaced == "slide" else "draw_labels"
    monkeypatch.setattr(stage, name, replace)
    ended = ingest(store, source(slide, labels))
    assert ended.state == "failed"
    assert f"{(slide if replaced == 'slide' else labels).name} has changed" in str(ended.failed)
    monkeypatch.setattr(stage, name, unchanged[name])
    if replaced == "labels":
        assert ingest(store, source(slide, labels)).state == "done"
        regions = load_region_set(store, "c")
        index = RegionIndex(store, regions, regions.slides[0].split)
        assert len(index) == regions.slides[0].regions > 0
