"""The routers of the pages, in the order in which paths are matched.

A new page needs its module here and, to be found by visitors, in `pages.NAVIGATION`.
"""

from __future__ import annotations

from services.gateway.web import (
    atlas,
    datasets,
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
        reader_studies,
        slides,
        atlas,
    )
)
