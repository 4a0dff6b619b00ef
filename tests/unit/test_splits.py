"""Splits by patient: none is divided, classes are spread, and a cohort may grow."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.ingest.splits import (
    Earlier,
    Member,
    assign_splits,
    changed_splits,
    earlier_splits,
    leaks,
    members_of,
)
from shared.contracts.base import Split, SplitFractions
from shared.contracts.ingest import CohortRecord, IngestRequest, PatchGrid, SlideSource, cohort_key
from shared.patients import Origin, alike, folded, known_origin
from shared.storage import DirectoryStore

RULE = SplitFractions(test=0.25)


def member(
    patient: str | None,
    given: Split | None = None,
    site: str | None = None,
    classes: Collection[int] = (),
) -> Member:
    return Member(patient, site, given, classes)


def test_all_slides_of_a_patient_are_in_one_split() -> None:
    slides = {f"{p}-{n}": member(f"p{p}") for p in range(12) for n in range(3)}
    splits = assign_splits(RULE, slides, None)
    of = {p: {splits[f"{p}-{n}"] for n in range(3)} for p in range(12)}
    assert all(len(parts) == 1 for parts in of.values())
    assert sum(parts == {"test"} for parts in of.values()) == 3
    assert not leaks(slides, splits)


def test_sites_are_not_divided_where_that_is_asked_for() -> None:
    slides = {f"s{n}": member(f"p{n}", site="ABCD"[n % 4]) for n in range(16)}
    splits = assign_splits(SplitFractions(by="site"), slides, None)
    test = {slides[name].site for name, split in splits.items() if split == "test"}
    train = {slides[name].site for name, split in splits.items() if split == "train"}
    assert len(test) == 1
    assert not test & train


def test_sites_that_share_a_patient_are_one() -> None:
    slides = {f"s{n}": member(f"p{n}", site="ABCD"[n % 4]) for n in range(16)}
    slides["shared"] = member("p0", site="C")  # p0 is of site A
    for seed in range(8):
        splits = assign_splits(SplitFractions(by="site", seed=seed), slides, None)
        assert len({splits[f"s{n}"] for n in (0, 2, 4, 6)} | {splits["shared"]}) == 1
        assert set(splits.values()) == {"train", "test"}
        assert not leaks(slides, splits)


@pytest.mark.parametrize(
    "names",
    [("M\u00fcller", "Mu\u0308ller", " m\u00dcller"), ("12", "12.0", "012"), ("A  B", "a\u00a0b")],
)
def test_spellings_of_a_patient_and_of_a_site_are_one(names: tuple[str, ...]) -> None:
    people = [*names, "other"]
    for kind in ("patient", "site"):
        request = IngestRequest(
            cohort="c",
            slides=tuple(
                SlideSource(slide=f"s{n}", source=f"/{n}", **{"site": f"x{n}", kind: name})
                for n, name in enumerate(people)
            ),
            split=SplitFractions(by="site"),
        )
        found = [getattr(each, kind) for each in members_of(request, {}, {}).values()]
        assert found == [names[0]] * len(names) + ["other"]
    assert len({folded(name) for name in ("1", "10", "P1", "P01", "1.5")}) == 5


@pytest.mark.parametrize("seed", range(20))
def test_rare_classes_are_in_training_and_in_test(seed: int) -> None:
    rare = {3, 11}
    slides = {f"p{n}": member(f"p{n}", classes=(1, 2) if n in rare else (1,)) for n in range(12)}
    splits = assign_splits(SplitFractions(test=0.25, seed=seed), slides, None)
    assert {splits[f"p{n}"] for n in rare} == {"train", "test"}
    assert list(splits.values()).count("test") == 3
    only = {f"p{n}": member(f"p{n}", classes=(1, 2) if n == 5 else (1,)) for n in range(12)}
    assert assign_splits(SplitFractions(seed=seed), only, None)["p5"] == "train"


def test_given_splits_count_for_the_whole_patient() -> None:
    slides = {"a1": member("a", "val"), "a2": member("a"), "b": member("b"), "c": member("c")}
    splits = assign_splits(RULE, slides, None)
    assert (splits["a1"], splits["a2"]) == ("val", "val")
    assert sorted((splits["b"], splits["c"])) == ["test", "train"]


def test_a_cohort_that_grows_keeps_its_splits() -> None:
    patients = {f"s{n}": f"p{n}" for n in range(8)}
    before = assign_splits(RULE, {s: member(p) for s, p in patients.items()}, None)
    known = Earlier(before, patients, RULE)
    for more in (9, 12, 16, 30):
        grown = {f"s{n}": member(f"p{n}") for n in range(more)} | {"s0b": member("p0")}
        after = assign_splits(RULE, grown, known)
        assert {name: after[name] for name in before} == before
        assert after["s0b"] == before["s0"]
        assert list(after.values()).count("test") >= round(more / 4)
    other = SplitFractions(test=0.5)
    assert changed_splits(after, known) == {}
    changed = assign_splits(other, {s: member(p) for s, p in patients.items()}, known)
    assert list(changed.values()).count("test") == 4  # another rule, another draw


def test_changed_splits_are_named() -> None:
    known = Earlier({"a": "train", "b": "test"}, {}, RULE)
    given = {"a": member(None, "test"), "b": member(None, "test"), "c": member(None, "train")}
    splits = assign_splits(RULE, given, known)
    assert changed_splits(splits, known) == {"a": "train → test"}
    assert changed_splits(splits, None) == {}


def test_only_slides_of_the_same_content_keep_their_splits(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    record = CohortRecord(
        cohort="c", classes=None, patches=PatchGrid(), split=RULE,
        splits={"a": "test", "b": "train"}, sha256={"a": "1", "b": "2"},
        patients={"a": "p", "b": "q"},
    )  # fmt: skip
    store.put_json(cohort_key("c"), record)
    request = IngestRequest(cohort="c", slides=(SlideSource(slide="a", source="/a"),))
    done = {"a": {"sha256": "1"}, "b": {"sha256": "another"}}
    assert earlier_splits(store, request, {}, done) == Earlier({"a": "test"}, {"a": "p"}, RULE)


def test_shares_leave_something_for_training() -> None:
    with pytest.raises(ValidationError, match=r"val \(0.5\) and test \(0.5\) leave nothing"):
        SplitFractions(val=0.5, test=0.5)
    SplitFractions(val=0.4, test=0.5)


def test_given_splits_that_divide_a_patient_are_refused_or_a_caution() -> None:
    slides = (
        SlideSource(slide="TCGA-AA-0001-DX1", source="/a", split="train"),
        SlideSource(slide="TCGA-AA-0001-DX2", source="/b", split="test"),
    )
    with pytest.raises(ValidationError, match=r"divide patient 'TCGA-AA-0001' \(TCGA-AA-0001-DX2"):
        IngestRequest(cohort="c", slides=slides)
    forced = IngestRequest(cohort="c", slides=slides, allow_leakage=True)
    members = {s.slide: member(s.origin.patient, s.split) for s in forced.slides}
    splits = assign_splits(RULE, members, None)
    assert splits == {"TCGA-AA-0001-DX1": "train", "TCGA-AA-0001-DX2": "test"}
    (caution,) = leaks(members, splits)
    assert "TCGA-AA-0001" in caution
    assert "better than they would be on new patients" in caution


def test_names_that_look_like_slides_of_one_patient_are_a_caution() -> None:
    slides = {name: member(None) for name in ("case12-a", "case12-b", "case13")}
    (caution,) = leaks(slides, {"case12-a": "train", "case12-b": "test", "case13": "train"})
    assert "case12: case12-a, case12-b" in caution
    assert not leaks(slides, {"case12-a": "train", "case12-b": "train", "case13": "test"})


@pytest.mark.parametrize(
    ("stated", "patient"),
    [
        ("TCGA-AA-0001-01A", "TCGA-AA-0001"),
        ("TCGA-AA-0001-11A-01-TS1", "TCGA-AA-0001"),
        ("tcga-aa-0001, TCGA-AA-0001", "TCGA-AA-0001"),  # of the GDC's sheets
        ("C3L-00001-21", "C3L-00001"),
        ("GTEX-1117F-0126", "GTEX-1117F"),
        ("TCGA-AA-0001, TCGA-AA-0002", "TCGA-AA-0001, TCGA-AA-0002"),  # whose is it?
        ("TCGA-AA-00015", "TCGA-AA-00015"),
        ("P7-01A", "P7-01A"),
    ],
)
def test_a_barcode_that_is_given_as_patient_is_its_patients(stated: str, patient: str) -> None:
    assert SlideSource(slide="0a-1b", source="/a", patient=stated).origin.patient == patient


def test_known_names_tell_patient_and_site() -> None:
    assert known_origin("tcga-aa-0001-01Z-00-DX1.2f6d") == Origin("TCGA-AA-0001", "AA")
    assert known_origin("C3L-00001-21") == Origin("C3L-00001", None)
    assert known_origin("GTEX-1117F-0126") == Origin("GTEX-1117F", None)
    assert known_origin("patient_012_node_3") == Origin("patient_012", None)
    assert known_origin("XTCGA-AA-00011") is None
    uuid = SlideSource(slide="0a-1b", source="/a", patient="TCGA-A7-1000")
    assert uuid.origin == Origin("TCGA-A7-1000", "A7")
    assert uuid.model_copy(update={"site": "north"}).origin.site == "north"
    assert alike(["P7_1", "P7_2", "CMU-1", "CMU-2", "001", "002", "H20-1234", "H20-1235"]) == {
        "P7": ["P7_1", "P7_2"]
    }
    assert set(alike(["P1_slide1", "P1_slide2", "K9-S1", "K9-S2", "lung_slide1"])) == {"P1", "K9"}
    assert alike(["slide-a", "slide-b"]) == {}
    assert alike(["a_0_2048", "a_1024_0", "b_0_2048", "b_512_512", "c_1"]) == {
        "a": ["a_0_2048", "a_1024_0"], "b": ["b_0_2048", "b_512_512"],
    }  # fmt: skip
    tiles = ["s_x0_y1", "s_x1_y1", "t-x-0-y-512-w-9-h-9-0a1b2c", "t-x-9-y-0-w-9-h-9-f01b2c"]
    tiles += ["u_tile_1", "u_tile_200", "P7_1_0_512", "P7_2_0_512", "H20-1234", "H20-1235"]
    assert set(alike(tiles)) == {"s", "t", "u", "P7"}
    assert set(alike(["x-DX1", "x-DX2", "9a", "9b", "smith-a", "smith-b"])) == {"x", "9", "smith"}


@pytest.mark.parametrize(
    ("names", "patients"),
    [
        (["P004-HE1", "P004-HE2", "P005-HE1"], {"P004"}),
        (["S21-1037-A1", "S21-1037-A2", "S21-1037-B1", "S21-1074-A1"], {"S21-1037"}),
        (["S21-1037-A1-HE", "S21-1037_B1_CD3", "S21-1037-2-Ki67"], {"S21-1037"}),
        (["P4-HE-1", "P4-Ki-67", "P4_her2", "P4-PD-L1", "P4-tumor"], {"P4"}),
        (["cedar-7939f8", "cedar-a7bd03", "elm"], {"cedar"}),
        (["cedar-7939f8", "cedar-a7bd03"], {"cedar"}),
        (["P1-1-7939f8", "P1-2-a7bd03"], {"P1"}),
        (["0_HE_train", "0_ER_train", "0_KI67_val", "1_HE_train"], {"0"}),  # ACROBAT
        (["TC_S01_P000001_C0001_B101", "TC_S01_P000001_C0002_B102"], {"TC_S01_P000001"}),  # TIGER
        (["1031280-17026-32640-[1 0 0]", "1031280-170-640-0-1-0-7939f8"], {"1031280"}),
        (["case0_xmin45749_ymin25055", "case0_xmin4_ymin2", "case1_xmin4_ymin2"], {"case0"}),
        (["P12L", "P12R", "P13-L", "P13-R"], {"P12", "P13"}),
        (["7_pre", "7_post", "123_T", "123_N", "123_LN1", "8-EVG", "8_Masson"], {"7", "123", "8"}),
        (["case5_20x", "case5_40x", "case6_20x"], {"case5"}),
        (["case12", "case12-a", "123", "123-1-7939f8"], {"case12", "123"}),
        (["S21_slide1", "S21_slide2", "S22-HE", "S22-CD3"], {"S21", "S22"}),
        # years and sites, after which patients are counted
        ([f"S21-0{n}" for n in range(1, 9)], set()),
        (["site1-05", "site1-06", "centre_2_12", "centre_2_13"], set()),
        (["LUAD2024-12", "LUAD2024-13", "2021_0123_001", "2021_0124_001"], set()),
        # numbers, patients, organs, accession numbers, and names of which nothing was left
        ([f"slide{n}" for n in range(1, 10)], set()),
        ([f"slide-{n}" for n in range(1, 10)], set()),
        (["UH1-P01", "UH1-P02", "UH1-P03"], set()),
        (["lung-HE1", "lung-HE2", "colon-HE1"], set()),
        (["S21-103745", "S21-103746", "H20-12-A1", "H20-13-A1"], set()),
        (["slide-7939f8", "slide-a7bd03", "elm"], set()),
    ],
)
def test_blocks_stains_and_digits_of_hashes_tell_slides_apart(
    names: list[str], patients: set[str]
) -> None:
    assert set(alike(names)) == patients
    assert all(len(members) > 1 for members in alike(names).values())


def test_a_split_by_site_needs_sites() -> None:
    with pytest.raises(ValidationError, match="needs the site of every slide"):
        IngestRequest(
            cohort="c",
            slides=(SlideSource(slide="a", source="/a"),),
            split=SplitFractions(by="site"),
        )
