"""Names of slides in the store: made of those of files, told apart, and kept."""

from __future__ import annotations

import unicodedata

import pytest
from pydantic import TypeAdapter

from heterotissue.sources.names import Named, RenamedError, distinct_names, plain_name
from shared.contracts.base import Name, spelling


@pytest.mark.parametrize(
    "text",
    ["a", "TCGA-CR-7395-01A-01-TS1.2f6d5f10-8a1f-4a30-8a3c-0a2e0bd9bcc0", "切片", "Ünïcode слайд",
     "a 1", "-x-", "…", "x" * 251, "plan", "Finish", "a\\b", "caf\udce9"],
)  # fmt: skip
def test_every_name_becomes_a_name_of_the_store(text: str) -> None:
    name = plain_name(text)
    assert TypeAdapter(Name).validate_python(name) == name
    assert len(name) <= 80
    assert name == plain_name(text)
    assert name.lower() not in {"plan", "finish"}


def test_names_tell_files_apart() -> None:
    assert plain_name("case_7-a.1") == "case_7-a.1"
    assert plain_name("müde Probe (2)").startswith("mude-Probe-2-")
    assert len({plain_name(text) for text in ("切片", "幻灯片", "a 1", "a-1", "a_1")}) == 5
    one, other = plain_name("u\u0308"), plain_name("ü")  # the same letter, written in two ways
    assert one == other


def test_equal_names_get_their_folders_and_known_slides_keep_theirs() -> None:
    a, b = Named("001", "siteA", "11" * 32), Named("001", "siteB", "22" * 32)
    assert distinct_names([a, b], {}) == ["siteA-001", "siteB-001"]
    assert distinct_names([a, b], {a.sha256: "001"}) == ["001", "siteB-001"]
    assert distinct_names([a, a._replace(sha256="33" * 32)], {}) == ["001-111111", "001-333333"]
    mixed = distinct_names([Named("A", "x", "11" * 32), Named("a", "y", "22" * 32)], {})
    assert len({name.lower() for name in mixed}) == 2


def test_a_known_name_is_kept_only_by_files_that_it_was_made_of() -> None:
    p1, p2 = Named("P1", "in", "11" * 32), Named("P2", "in", "22" * 32)
    known = {p1.sha256: "P1", p2.sha256: "P2"}
    assert distinct_names([p1, p2], known) == ["P1", "P2"]
    with pytest.raises(RenamedError, match="'P1' has the content of slide 'P2'"):
        distinct_names([p2._replace(wish="P1"), p1._replace(wish="P2")], known)
    with pytest.raises(RenamedError, match="'Case7' has the content of slide 'P1'"):
        distinct_names([p1._replace(wish="Case7"), p2], known)
    assert distinct_names([p1._replace(folder="moved"), p2], known) == ["P1", "P2"]
    a, b = Named("001", "a", "11" * 32), Named("001", "b", "22" * 32)
    known = {a.sha256: "a-001", b.sha256: "b-001"}
    with pytest.raises(RenamedError):  # the two folders changed places
        distinct_names([a._replace(folder="b"), b._replace(folder="a")], known)


def test_accents_of_class_names_may_be_written_apart() -> None:
    apart = unicodedata.normalize("NFD", "Épithélium")
    assert apart != "Épithélium"
    assert spelling(apart) == spelling("épithélium")
