"""Shared fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real histology, or a skip where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip("the real histology data (../shared/data) is not beside the project")
    return REAL_DATA
