"""Twenty thousand damaged inputs, which are the same at every run; `make fuzz` tries more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.run import fuzz
from tests.fuzz.targets import make_targets

INPUTS = 5000


def test_parsers_read_what_is_sound(tmp_path: Path) -> None:
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    for target in make_targets(seeds):
        for name, data in target.seeds.items():
            path = tmp_path / name
            path.write_bytes(data)
            if name.startswith("moving"):
                with pytest.raises(target.refusals, match="animated"):
                    target.run(path)
            else:
                target.run(path)


@pytest.mark.parametrize("seed", range(4))
def test_parsers_read_or_refuse_what_is_damaged(seed: int) -> None:
    figures = fuzz(INPUTS, seed=seed)
    assert figures.faults == {}
    assert sum(figures.inputs.values()) == INPUTS
    assert len(figures.inputs) == 17
    assert INPUTS * 0.3 < figures.refused < INPUTS * 0.95
