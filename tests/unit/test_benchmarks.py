"""The measurements that choices were made by, on toy models."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import guidance
from shared.contracts.base import Split
from shared.storage import DirectoryStore
from tests.models import publish_toy_model
from tests.region_sets import make_region_set

SPLITS: dict[str, Split] = {"slide-0": "train", **{f"slide-{n}": "val" for n in range(1, 5)}}


@pytest.mark.parametrize("condition", ["both", "map"])
def test_guidance_is_swept_on_the_val_split(
    condition: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = DirectoryStore(tmp_path)
    publish_toy_model(store, make_region_set(store, splits=SPLITS, size=32, regions=12))
    monkeypatch.setattr(guidance, "SETTINGS", ((1, 1.0, 0.0, 1.0), (1, 1.5, 0.0, 1.0)))
    guidance.main([str(tmp_path), "toy", "--encoders", "random", "--condition", condition])
    heading, *rows, real = capsys.readouterr().out.splitlines()[-4:]
    assert heading.startswith("steps | guidance | from | to | evaluations | random |")
    assert [row.split(" | ")[:5] for row in rows] == [
        ["1", "1.0", "0.0", "1.0", "1"],
        ["1", "1.5", "0.0", "1.0", "2"],
    ]
    assert real.startswith("real regions: stain error")
    for scale in ("1_0", "1_5"):
        made = store.get_json(f"datasets/guidance-{condition}-1-{scale}-0_0-1_0/dataset.json")
        assert made["request"]["condition"] == condition
        assert made["request"]["maps"]["splits"] == ["val"]
