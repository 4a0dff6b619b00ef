"""Shared fixtures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from heterotissue import cli
from tests.formats.cohort_files import Outcome


@pytest.fixture
def htd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command that makes cohort c in a store of the test."""

    def run(*words: str | Path) -> Outcome:
        store = tmp_path / "store"
        line = ["htd", *map(str, words), "--store", str(store), "--cohort", "c"]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        shown = capsys.readouterr()
        return Outcome(int(stopped.value.code or 0), shown.err + shown.out, store)

    return run
