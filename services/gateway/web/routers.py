"""The routers of all pages, in the order in which paths are matched.

The module of a new page must be added here, and its path to `pages.NAVIGATION` for a link to it.
"""

from __future__ import annotations

from services.gateway.web import (
    atlas,
    datasets,
    fields,
    login,
    reader_studies,
    slides,
    studio,
    training,
)

ROUTERS = tuple(
    module.router
    for module in (
        login,
        datasets,
        training,
        studio,
        fields,
        reader_studies,
        slides,
        atlas,
    )
)
