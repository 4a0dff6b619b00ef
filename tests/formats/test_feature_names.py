"""Which file of features is which slide's, by its name."""

from __future__ import annotations

from services.embed.imported import match_files
from tests.formats.test_features import slide_record


def test_signs_between_numbers_count() -> None:
    slides = {name: slide_record(name, source=f"sources/{name}.svs") for name in ("1-12", "2-3")}
    assert match_files(["2_3.h5", "11-2.h5", "112.h5"], slides) == {"2-3": "2_3.h5"}
