"""Which file of features is which slide's, by its name."""

from __future__ import annotations

from pathlib import Path

from services.embed.imported import match_files
from shared.storage import DirectoryStore
from tests.formats.test_features import TRIDENT, make_cohort, slide_record, take, write


def test_signs_between_numbers_count() -> None:
    slides = {name: slide_record(name, source=f"sources/{name}.svs") for name in ("1-12", "2-3")}
    assert match_files(["2_3.h5", "11-2.h5", "112.h5"], slides) == ({"2-3": "2_3.h5"}, {})


def test_a_file_belongs_to_the_slide_whose_file_it_is_named_after() -> None:
    """Other tools know the names of files, not those that a table gives to slides."""
    crossed = {
        "P1": slide_record("P1", source="sources/0/P2.tif"),
        "P2": slide_record("P2", source="sources/1/P1.tif"),
    }
    assert match_files(["P1.h5", "P2.h5"], crossed) == ({"P1": "P2.h5", "P2": "P1.h5"}, {})
    assert match_files(["P1.h5"], crossed) == ({"P2": "P1.h5"}, {})
    sites = {
        f"site{name}-001": slide_record("s", source=f"sources/{name}/001.svs") for name in "AB"
    }
    files = ["siteA-001.h5", "siteB-001.h5", "001.h5"]
    matches = {"siteA-001": files[0], "siteB-001": files[1]}
    assert match_files(files, sites) == (matches, {})
    matches, unclear = match_files(["001.h5", "b.h5"], sites | {"b": slide_record("b")})
    assert matches == {"b": "b.h5"}
    assert set(unclear) == set(sites)
    assert "may belong to each of the slides siteA-001, siteB-001" in unclear["siteA-001"]
    one = {"one": slide_record("one", source="sources/0/0.png")}
    matches, unclear = match_files(["one.h5", "0.h5"], one)
    assert not matches
    assert "one has several files of features: 0.h5, one.h5" in unclear["one"]


def test_a_file_that_may_be_of_two_slides_costs_these_alone(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    make_cohort(store, *(slide_record(name) for name in ("P1-1", "P1_1", "b")))
    for file, name in (("P1 1", "P1-1"), ("b", "b")):
        write(tmp_path / "in" / f"{file}.h5", **TRIDENT | {"name": name})
    status = take(store, tmp_path / "in")
    assert set(status.failed) == {"P1-1", "P1_1"}
    assert "P1 1.h5 may belong to each of the slides P1-1, P1_1" in status.failed["P1-1"]
    (tmp_path / "in/P1 1.h5").rename(tmp_path / "in/P1-1.h5")
    status = take(store, tmp_path / "in")
    assert set(status.failed) == {"P1_1"}
    assert "holds no P1_1.h5" in status.failed["P1_1"]
