"""Two thousand damaged inputs, which are the same at every run; `make fuzz` tries more."""

from __future__ import annotations

from tests.fuzz.run import fuzz

INPUTS = 2000


def test_parsers_read_or_refuse_what_is_damaged() -> None:
    figures = fuzz(INPUTS, seed=0)
    assert figures.faults == {}
    assert sum(figures.inputs.values()) == INPUTS
    assert len(figures.inputs) == 17
    assert INPUTS * 0.3 < figures.refused < INPUTS * 0.95
