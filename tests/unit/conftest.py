"""Shared fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.jobs import Ledger
from shared.phantom import write_phantom
from shared.storage import DirectoryStore
from tests.phantoms import PHANTOM_SEED


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """The jobs of a store of the test."""
    return Ledger(DirectoryStore(tmp_path))


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom slide with its annotation beside it."""
    return write_phantom(tmp_path_factory.mktemp("slides"), "p", 1500, 1200, PHANTOM_SEED).slide
