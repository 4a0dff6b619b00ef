"""Shared fixtures."""

from __future__ import annotations

import pytest

from tests.deploy.manifests import VARIANTS, Manifest, rendered


@pytest.fixture(params=VARIANTS)
def manifests(request: pytest.FixtureRequest) -> tuple[Manifest, ...]:
    """The objects of each of the VARIANTS."""
    return rendered(request.param)
