"""Shared fixtures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shared.jobs import Ledger
from shared.phantom import write_phantom
from shared.storage import DirectoryStore
from tests.phantoms import PHANTOM_SEED

if TYPE_CHECKING:
    from tests.gateway import Gateway


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """The jobs of a store of the test."""
    return Ledger(DirectoryStore(tmp_path))


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom slide with its annotation beside it."""
    return write_phantom(tmp_path_factory.mktemp("slides"), "p", 1500, 1200, PHANTOM_SEED).slide


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    """A gateway whose store has a model and its regions."""
    from tests.gateway import Gateway  # they import torch, which few other tests need
    from tests.models import publish_toy_model
    from tests.region_sets import make_region_set

    store = DirectoryStore(tmp_path)
    publish_toy_model(store, make_region_set(store))
    return Gateway(tmp_path)
