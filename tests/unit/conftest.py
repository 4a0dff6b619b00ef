"""Shared fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.jobs import Ledger
from shared.storage import DirectoryStore


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """The jobs of a store of the test."""
    return Ledger(DirectoryStore(tmp_path))
