"""Evaluations: what is compared with what, and the report."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch

from heterotissue.checks import notes
from services.evaluate import encoding
from services.evaluate import stage as evaluate
from services.evaluate.data import class_gaps, gather, spread
from services.evaluate.held_out import unlearnt
from services.evaluate.naming import report_names, with_pseudonyms
from services.evaluate.report import html_report, summarize
from services.evaluate.stage import EvaluateStage
from services.evaluate.usefulness import ImageScores, SegmenterResult
from shared.contracts.base import Classes
from shared.contracts.evaluate import EvaluateRequest, Report, TrainingSet
from shared.contracts.models import ModelRecord
from shared.contracts.regions import RegionSet, SourceSlide, region_set_key
from shared.contracts.synthesize import CropSource, DatasetRequest, MapSource
from shared.datasets.pseudonyms import dataset_pseudonyms, source_names
from shared.datasets.samples import load_dataset
from shared.errors import InputError
from shared.imaging.codec import decode_png
from shared.imaging.region_sets import region_table
from shared.jobs import JobStatus, Ledger, NameTakenError, run_job
from shared.storage import DirectoryStore, sha256
from tests.models import publish_toy_model
from tests.region_sets import make_region_set
from tests.toy_dataset import CONFIG, make_store, synthesize


class Colours:
    """A stand-in encoder: means and spreads of the colour channels."""

    license = "none"

    def encode(self, images: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        pixels = images.reshape(len(images), -1, 3).astype(np.float32)
        return np.concatenate([pixels.mean(1), pixels.std(1)], 1)


def run_evaluate(store: DirectoryStore, **fields: object) -> JobStatus:
    options: dict[str, object] = {
        "report": "r", "dataset": "d", "segmenter_steps": 2, "segmenter_batch": 2,
    }  # fmt: skip
    request = EvaluateRequest.model_validate(options | fields)
    ledger = Ledger(store)
    return run_job(ledger, EvaluateStage(), ledger.submit(request, replace=True), config=CONFIG)


@pytest.fixture(autouse=True)
def _colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "load_encoder", lambda *_, **__: Colours())


def test_the_report_says_what_was_measured_on_what(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    status = run_evaluate(store, seeds=2)
    assert status.state == "done", status.failed
    report = store.get_json("reports/r/report.json")
    assert report["held_out"] is True
    assert report["cautions"] == []
    names = source_names(store, load_dataset(store, "d"))
    (tested,) = report["real_test"]["slides"]
    assert names[tested] == "slide-c"
    assert report["real_test"] == {
        "slides": [tested], "regions": 6, "patients": None, "classes": {},
    }  # fmt: skip
    assert [names[name] for name in report["real_train"]["slides"]] == ["slide-a", "slide-b"]
    assert report["real_train"]["regions"] == 12
    (found,) = report["fidelity"]
    assert found["encoder"] == "embedded"
    assert found["n"] == 3
    assert set(found["rows"]) == {"floor", "train", "dataset", "reconstruction"}
    assert "nearest" not in found
    assert 0 <= found["leakage"]["dataset"]["authentic"] <= 1
    assert report["appearance"]["autoencoder"]["n"] == 6
    for membership in (found["membership"], report["appearance"]["membership"]):
        assert (membership["n"], membership["patients"]) == ([12, 6], [2, 1])
        assert 0 <= membership["auc_interval"][0] <= membership["auc_interval"][1] <= 1
    for source, n in (("real", 12), ("synthetic", 9), ("both", 21)):
        row = report["segmentation"][source]
        assert row["trained_on"] == n
        assert row["seeds"] == 2
        assert row["spread"] is not None
        assert set(row["iou"]) == {"stroma", "tumor"}
    assert report["faithfulness"]["n"] == 9
    page = store.get("reports/r/report.html").decode()
    assert "Held out: yes" in page
    assert "noise that the denoiser finds" in page
    assert "with fewer than 3" in page
    assert "http" not in page.replace("http-equiv", "")  # self-contained
    assert decode_png(store.get("reports/r/sheet.png")).shape[1] > 8 * 32


def test_a_report_names_no_slide_and_no_patient(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    request = EvaluateRequest(report="r", dataset="d")
    material = gather(store, request)
    patients = {"slide-a": "DOE-JANE", "slide-b": "DOE-JANE", "slide-c": "ROE"}
    parts = [p.model_copy(update={"patient": patients[p.slide]}) for p in material.real.slides]
    real = material.real.model_copy(
        update={
            "slides": tuple(parts),
            "cautions": (
                "Slides of 1 patient (doe-jane: slide-a, slide-b) are divided.",
                "MOE-1961 is of another resolution, and has left the cohort since.",
            ),
            "left_out": (SourceSlide(slide="MOE-1961"),),
        }
    )
    store.put_json(region_set_key(real.name), real)
    material = gather(store, request)
    pseudonyms = dataset_pseudonyms(store, material.dataset.request)
    names = report_names(store, real, pseudonyms)
    report = with_pseudonyms(summarize(request, material, [], None, [], []), names)
    text = report.model_dump_json() + html_report(report, material, b"")
    planted = ("DOE-JANE", "doe-jane", "ROE", "MOE", *patients)
    assert [name for name in planted if re.search(rf"\b{name}\b", text)] == []
    patient, one, other = names["DOE-JANE"], names["slide-a"], names["slide-b"]
    assert report.cautions == (
        f"Slides of 1 patient ({patient}: {one}, {other}) are divided.",
        f"{names['MOE-1961']} is of another resolution, and has left the cohort since.",
    )
    assert report.real_train.slides == (one, other)


def test_the_page_shows_every_score_below_its_own_class(tmp_path: Path) -> None:
    """Class names that sort otherwise than their indices, as records in the store do."""
    store = make_store(tmp_path)
    material = gather(store, EvaluateRequest(report="r", dataset="d"))
    record = material.dataset.model_copy(
        update={
            "classes": Classes.of("zona", "acinus"),
            "proportions": {"acinus": 0.6, "zona": 0.4},
        }
    )
    material = replace(material, dataset=record)
    score = ImageScores(mean_iou=0.5, accuracy=0.5, iou=(0.111, 0.888), n=6)
    real = TrainingSet.REAL
    parts = [SegmenterResult(source=real, seed=0, n=12, test=score, faithfulness=score)]
    report = summarize(EvaluateRequest(report="r", dataset="d"), material, [], None, parts, [])
    scores = report.segmentation[real]
    assert scores is not None
    assert scores.iou == {"zona": 0.111, "acinus": 0.888}
    assert report.segmentation[TrainingSet.REAL_AND_SYNTHETIC] is None
    plain = json.dumps(report.model_dump(mode="json"), sort_keys=True)
    shuffled = Report.model_validate_json(plain)
    page = html_report(shuffled, material, b"")
    cells = re.findall(r"<t[hd][^>]*>(?:<span[^>]*></span>)?([^<]*)<", page)
    columns = cells.index("mean IoU") + 2
    assert cells[columns : columns + 2] == ["zona", "acinus"]
    row = cells.index("real", columns) + 5
    assert cells[row : row + 2] == ["0.111", "0.888"]
    shares = cells.index("reached")
    assert cells[shares + 1 : shares + 7] == ["zona", "–", "0.400", "acinus", "–", "0.600"]


def test_the_ablation_tells_what_each_condition_is_worth(tmp_path: Path) -> None:
    store = make_store(tmp_path, {f"slide-{n}": "train" if n < 4 else "test" for n in range(9)})
    for row in ("none", "map", "crops", "both"):
        for splits, name in ((("test",), row), (("train",), f"seen-{row}")):
            request = DatasetRequest(
                dataset=name, model="toy", images=30, steps=1, condition=row,
                maps=MapSource(splits=splits), crops=CropSource(splits=splits, slide="same"),
            )  # fmt: skip
            synthesize(store, request)
    rows = {row: row for row in ("none", "map", "crops", "both")}
    status = run_evaluate(
        store, ablation=rows, seen={"both": "seen-both"}, encoders=("one", "two"), few=0.3
    )
    assert status.state == "done", status.failed
    report = store.get_json("reports/r/report.json")
    assert report["held_out"]
    assert [part["encoder"] for part in report["fidelity"]] == ["one", "two"]
    for part in report["fidelity"]:
        assert {*rows, "seen both", "floor"} < set(part["rows"])
        assert part["retrieval"]["both"]["chance"] == pytest.approx(1 / 32)
    looks = report["appearance"]
    assert set(looks["stain"]) == {*rows, "seen both", "real"}
    assert looks["stain"]["real"] < looks["stain"]["both"]  # the toy model is untrained
    assert set(looks["detail"]) == {*rows, "seen both", "reconstruction"}
    assert looks["per_patient"]["patients"] == report["fidelity"][0]["per_patient"]["patients"] == 5
    assert looks["copying"] == {"made": None, "chance": None, "n": 0, "n_chance": 0}  # tiny crops
    assert report["segmentation"]["few"]["trained_on"] == 12
    assert report["segmentation"]["few_both"]["trained_on"] == 21
    page = store.get("reports/r/report.html").decode()
    assert "map + crops, of training slides" in page
    assert "few real + synthetic" in page


def test_a_rerun_gives_the_same_bytes(tmp_path: Path) -> None:
    stores = [make_store(tmp_path / name) for name in ("a", "b")]
    found = []
    for store in stores:
        run_evaluate(store)
        found.append({key: store.get(key) for key in store.list("reports/")})
    assert found[0] == found[1]
    assert len(found[0]) == 4


def test_images_made_again_by_another_model_are_measured_again(tmp_path: Path) -> None:
    """A model that was trained again under its old name makes another dataset of the old name."""
    store = make_store(tmp_path)
    ledger, request = Ledger(store), EvaluateRequest(report="r", dataset="d")
    before = ledger.identify(request)
    model = store.get_model("models/toy/1/model.json", ModelRecord)
    changed = {}
    for name in model.sha256:
        weights = safetensors.torch.load(store.get(f"models/toy/1/{name}"))
        data = safetensors.torch.save(weights, {"format": "pt", "trained": "again"})
        store.put(f"models/toy/1/{name}", data)
        changed[name] = sha256(data)
    again = model.model_copy(update={"sha256": changed})
    store.put_json("models/toy/1/model.json", again)
    made = DatasetRequest.model_validate(store.get_json("datasets/d/dataset.json")["request"])
    with pytest.raises(NameTakenError):  # the dataset may be in use
        ledger.submit(made)
    synthesize(store, made)
    assert ledger.identify(request) != before


def test_statistics_of_one_report_are_a_reference_for_another(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    run_evaluate(store)
    key = "reports/r/reference-embedded.safetensors"
    assert run_evaluate(store, report="s", references={"embedded": key}).state == "done"
    (found,) = store.get_json("reports/s/report.json")["fidelity"]
    assert found["reference"]["n"] == [9, 6]
    assert found["reference"]["source"] == "toy (test)"
    assert found["reference"]["frechet"] > 0
    store.put("broken", b"no statistics")
    status = run_evaluate(store, report="t", references={"embedded": "broken"})
    assert "reference broken cannot be used" in str(status.failed)


def test_without_a_held_out_slide_the_report_says_so(tmp_path: Path) -> None:
    store = make_store(tmp_path, {"alone": "train"})
    assert run_evaluate(store).state == "done"
    report = store.get_json("reports/r/report.json")
    assert report["held_out"] is False
    assert "No slide is held out" in report["cautions"][0]
    assert report["real_train"]["regions"] == 4
    assert report["real_test"]["regions"] == 2
    assert "Held out: no" in store.get("reports/r/report.html").decode()
    material = gather(store, EvaluateRequest(report="r", dataset="d"))
    assert not set(material.train.positions) & set(material.test.positions)


def test_segmenters_see_the_largest_side_that_they_take(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    publish_toy_model(store, make_region_set(store), size=40)
    synthesize(store, DatasetRequest(dataset="d", model="toy", images=4, steps=1))
    status = run_evaluate(store)
    assert status.state == "done", status.failed
    report = store.get_model("reports/r/report.json", Report)
    assert report.size == 40
    assert report.segmentation[TrainingSet.REAL] is not None


def test_classes_without_regions_are_cautioned_against(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    real = store.get_model("regions/toy/set.json", RegionSet)
    request = EvaluateRequest(report="r", dataset="d")
    assert class_gaps(store, request, real) == unlearnt(store, request) == []
    model = store.get_model("models/toy/1/model.json", ModelRecord)
    learnt_less = model.model_copy(update={"unlearnt": ("tumor",)})
    store.put_json("models/toy/1/model.json", learnt_less)
    assert "Model toy/1 has never learnt tumor: without crops" in notes(store, request)[0]
    for part in real.of_split("test"):
        key = f"regions/toy/{part.slide}.parquet"
        rows = pq.read_table(io.BytesIO(store.get(key))).to_pylist()
        store.put(key, region_table([row | {"fractions": [0.5, 0.5, 0]} for row in rows]))
    status = run_evaluate(store)
    assert status.result is not None
    assert status.result["classes never learnt"] == ["tumor"]
    cautions = store.get_model("reports/r/report.json", Report).cautions
    assert "No region of test has tumor: they are not scored." in cautions
    assert cautions[0].startswith("Model toy/1 has never learnt tumor")


def test_a_segmenter_that_failed_leaves_a_partial_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path)

    def broken(*_: object) -> None:
        raise InputError("no features today")

    monkeypatch.setattr(evaluate, "measure_encoder", broken)
    assert run_evaluate(store).state == "partial"
    report = store.get_json("reports/r/report.json")
    assert report["fidelity"] == []
    assert report["segmentation"]["real"] is not None
    assert "Not measured" in store.get("reports/r/report.html").decode()
    assert json.loads(store.get("reports/r/report.json")) == report


def test_images_for_a_capped_score_are_evenly_apart() -> None:
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 8) == [0, 1, 2]
