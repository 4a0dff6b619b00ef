"""What is tested on is held out of training, or the report cautions against it."""

from __future__ import annotations

from pathlib import Path

from services.evaluate.data import gather
from services.evaluate.report import html_report, summarize
from shared.contracts.evaluate import EvaluateRequest
from shared.contracts.models import ModelRecord
from shared.contracts.regions import SourceSlide, SourceSlides, region_set_key
from shared.contracts.synthesize import CropSource, DatasetRequest, MapSource
from shared.contracts.train import training_key
from shared.datasets.slide_sources import among, slides_of
from shared.imaging.region_sets import load_region_set
from shared.storage import sha256
from tests.region_sets import make_region_set
from tests.toy_dataset import make_store, synthesize


def test_patients_in_training_and_test_are_a_caution(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    request = EvaluateRequest(report="r", dataset="d")
    material = gather(store, request)
    assert (material.held_out, material.cautions) == (True, [])

    def told(of_c: str, *cautions: str) -> tuple[bool, list[str]]:
        patients = {"slide-a": "A", "slide-b": "B", "slide-c": of_c}
        slides = tuple(
            part.model_copy(update={"patient": patients[part.slide], "class_regions": (1, 2, 3)})
            for part in material.real.slides
        )
        update = {"slides": slides, "cautions": cautions}
        record = material.real.model_copy(update=update)
        store.put_json(region_set_key(record.name), record)
        found = gather(store, request)
        report = summarize(request, found, [], None, [], [])
        assert report.real_train.patients == 2
        assert report.real_train.classes == {"stroma": 4, "tumor": 6}
        page = html_report(report, found, b"")
        assert "<th>with tumor</th>" in page
        assert all(text in page for text in found.cautions)
        return report.held_out, found.cautions

    assert told("C") == (True, [])
    held_out, (caution,) = told("A")
    assert not held_out
    assert "Slides of patients A are tested on" in caution
    assert told("C", "A leak was asked for.") == (False, ["A leak was asked for."])


def test_testing_on_training_slides_or_test_maps_is_flagged(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    material = gather(store, EvaluateRequest(report="r", dataset="d", real_test=("train",)))
    assert not material.held_out
    assert "slide-a" in material.cautions[0]
    request = DatasetRequest(
        dataset="d", model="toy", images=2, steps=1, maps=MapSource(splits=("test",))
    )
    synthesize(store, request)
    material = gather(store, EvaluateRequest(report="r", dataset="d"))
    assert not material.held_out
    assert "test split" in material.cautions[0]


def test_a_dataset_made_of_the_split_that_is_tested_on_is_flagged(tmp_path: Path) -> None:
    """Whatever that split is: here val, as where settings are chosen."""
    store = make_store(tmp_path, {"slide-a": "train", "slide-b": "val"})
    request = DatasetRequest(
        dataset="d", model="toy", images=2, steps=1, crops=CropSource(splits=("val",))
    )
    synthesize(store, request)
    material = gather(store, EvaluateRequest(report="r", dataset="d", real_test=("val",)))
    assert not material.held_out
    assert "val split" in material.cautions[0]


def test_slides_that_any_model_was_trained_on_are_not_held_out(tmp_path: Path) -> None:
    """The model of another row, and the one that a model was started from."""
    store = make_store(tmp_path)
    earlier = make_region_set(store, "earlier", splits={"slide-c": "train"})
    record = store.get_model("models/toy/1/model.json", ModelRecord)
    first = record.model_copy(update={"model": "first", "regions": earlier.name})
    store.put_json("models/first/1/model.json", first)
    row = store.get_json("datasets/d/dataset.json") | {"dataset": "row", "model": "first/1"}
    store.put_json("datasets/row/dataset.json", row)
    request = EvaluateRequest(report="r", dataset="d")
    assert gather(store, request).held_out
    flagged = gather(store, request.model_copy(update={"ablation": {"embedding": "row"}}))
    assert not flagged.held_out
    assert flagged.cautions[0].startswith("Slides slide-c are tested on")
    second = record.model_copy(update={"warm_start": "models/first/1"})
    store.put_json("models/toy/1/model.json", second)
    assert gather(store, request).cautions == flagged.cautions
    store.delete("models/first/1/model.json")
    material = gather(store, request)
    assert not material.held_out
    assert "first/1, which a generator was started from" in material.cautions[0]


def test_slides_are_those_of_the_training_whatever_the_splits_are_today(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    request = EvaluateRequest(report="r", dataset="d")
    model = store.get_model("models/toy/1/model.json", ModelRecord)
    regions = load_region_set(store, model.regions)
    known = SourceSlides(slides=tuple(slides_of(store, regions, "train")))
    assert [each.slide for each in known.slides] == ["slide-a", "slide-b"]
    key = training_key(model.run, "slides.json")
    store.put_json(key, known)
    stated = model.model_copy(update={"slides": sha256(store.get(key))})
    store.put_json("models/toy/1/model.json", stated)
    assert gather(store, request).held_out
    today = {"slide-a": "test", "slide-b": "train", "slide-c": "train"}
    parts = tuple(part.model_copy(update={"split": today[part.slide]}) for part in regions.slides)
    store.put_json(region_set_key(regions.name), regions.model_copy(update={"slides": parts}))
    material = gather(store, request)
    assert (material.held_out, material.test_slides) == (False, ["slide-a"])
    assert material.cautions[0].startswith("Slides slide-a are tested on, and were also trained")
    assert "Maps or crops of the dataset were taken from the test split" in material.cautions[1]


def test_slides_are_compared_by_their_contents() -> None:
    trained = [SourceSlide(slide="a", sha256="1"), SourceSlide(slide="b", sha256="2")]
    tested = [
        SourceSlide(slide="renamed", sha256="1"),
        SourceSlide(slide="b", sha256="3"),
        SourceSlide(slide="tile"),
    ]
    assert among(tested, trained) == ["renamed"]
    assert among(tested, [SourceSlide(slide="b"), SourceSlide(slide="tile", sha256="4")]) == [
        "b", "tile",
    ]  # fmt: skip
    assert among(tested, []) == []
