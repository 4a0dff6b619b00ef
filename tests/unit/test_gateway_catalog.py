"""The HTTP API's cohorts, features, atlas of tissue types, runs and models."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from shared.imaging.codec import decode_png
from shared.phantom import write_phantom
from shared.storage import DirectoryStore
from tests.gateway import Gateway
from tests.models import publish_toy_model
from tests.phantoms import PHANTOM_SEED
from tests.region_sets import make_region_set

GRID = {"size": 32, "mpp": 1.0, "stride": 16, "min_tissue": 0.5}


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    """A cohort whose features were made elsewhere, and its clustering into four types."""
    gateway = Gateway(tmp_path_factory.mktemp("store"))
    client, folder = gateway.client, tmp_path_factory.mktemp("slides")
    sources = []
    for name, height in (("a", 1536), ("b", 1024)):
        slide = write_phantom(folder, name, 1536, height, PHANTOM_SEED).slide
        client.put(f"/v1/slides/{name}/source/{name}.tiff", content=slide.read_bytes())
        sources.append({"slide": name, "source": f"slides/{name}/source/{name}.tiff"})
    body = {"cohort": "c", "slides": sources, "patches": GRID, "split": {"test": 0}}
    submit(gateway, "ingest", body)
    for name in ("a", "b"):
        table = pq.read_table(io.BytesIO(gateway.resources.root.get(f"patches/c/{name}.parquet")))
        coords = np.stack([table["x"], table["y"]], 1)
        file = io.BytesIO()
        with h5py.File(file, "w") as written:
            written["coords"] = coords
            written["features"] = np.random.default_rng(0).normal(size=(len(coords), 8))
        sent = client.put(f"/v1/features/mine/{name}.h5", content=file.getvalue())
        assert sent.status_code == 204
    embed = {"cohort": "c", "encoder": "mine", "imported": "incoming/features/mine"}
    submit(gateway, "embed", embed)
    rule = {"size": 64, "mpp": 1.0, "low": 0.05, "high": 0.95}
    submit(gateway, "cluster", {"run": "t", "cohort": "c", "encoder": "mine", "k": 4,
                                "sample_per_slide": 50, "regions": rule})  # fmt: skip
    return gateway


def submit(gateway: Gateway, stage: str, body: dict[str, object]) -> None:
    answer = gateway.client.post(f"/v1/{stage}", json=body)
    assert answer.status_code == 202, answer.text
    status = gateway.work(answer.json()["job"])
    assert status.state == "done", status.failed


def test_cohorts_and_their_features_are_there(clustered: Gateway) -> None:
    assert clustered.client.get("/v1/cohorts").json()["items"] == ["c"]
    assert set(clustered.client.get("/v1/cohorts/c").json()["splits"]) == {"a", "b"}
    record = clustered.resources.root.get_json("features/mine/c/features.json")
    assert record["dim"] == 8
    lacking = {"cohort": "c", "encoder": "x", "imported": "incoming/features/none"}
    refused = clustered.client.post("/v1/embed", json=lacking)
    assert (refused.status_code, lacking["imported"] in refused.text) == (404, True)
    clustered.resources.root.put("incoming/features/none/c.h5", b"")
    job = clustered.client.post("/v1/embed", json=lacking).json()["job"]
    assert "lacks <slide>.h5 of a, b" in clustered.work(job).failed["plan"]


def test_types_are_named_merged_and_applied(clustered: Gateway) -> None:
    client = clustered.client
    atlas = client.get("/v1/clusters/t")
    kinds = {item["label"]: item["type"] for item in atlas.json()["types"]}
    assert set(kinds) == {1, 2, 3, 4}
    assert decode_png(client.get("/v1/clusters/t/gallery.png").content).ndim == 3
    assert decode_png(client.get("/v1/clusters/t/types/1.png").content).shape[0] == 96
    kinds[1] |= {"name": "stroma", "color": [1, 2, 3]}
    kinds[2] |= {"merge": 1}
    named = client.put(
        "/v1/clusters/t/types", json=kinds, headers={"If-Match": atlas.headers["ETag"]}
    )
    assert named.json()["types"][0]["type"] == {"name": "stroma", "color": [1, 2, 3], "merge": None}
    late = client.put(
        "/v1/clusters/t/types", json=kinds, headers={"If-Match": atlas.headers["ETag"]}
    )
    assert late.status_code == 412
    applied = client.post("/v1/clusters/t/apply")
    assert applied.status_code == 202
    assert clustered.work(applied.json()["job"]).state == "done"
    names = [item["name"] for item in client.get("/v1/regions/t").json()["classes"]["items"]]
    assert names == ["background", "stroma", "type 3", "type 4"]


def test_merges_that_make_no_sense_are_refused(clustered: Gateway) -> None:
    kind = {"name": "x", "color": [0, 0, 0], "merge": None}
    for types, words in (
        ({1: kind}, "types 1 to 4"),
        ({n: kind | {"merge": 9} for n in range(1, 5)}, "merged into 9"),
        ({n: kind | {"merge": n % 4 + 1} for n in range(1, 5)}, "in a circle"),
    ):
        answer = clustered.client.put("/v1/clusters/t/types", json=types)
        assert answer.status_code == 422
        assert words in answer.json()["detail"]


def test_regions_are_listed_and_shown(clustered: Gateway) -> None:
    client = clustered.client
    first = client.get("/v1/regions/t/a", params={"limit": 1}).json()
    key = first["items"][0]["key"]
    assert key.startswith("a_")
    assert sum(first["items"][0]["fractions"]) == pytest.approx(1, abs=1e-5)
    assert decode_png(client.get(f"/v1/regions/t/a/{key}.png").content).shape == (64, 64, 3)
    labels = client.get(f"/v1/regions/t/a/{key}.png", params={"show": "labels"})
    assert decode_png(labels.content).shape == (64, 64)
    assert client.get("/v1/regions/t/a/none.png").status_code == 404
    assert client.get("/v1/regions/none").status_code == 404


def test_models_are_listed_and_deployed(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    publish_toy_model(store, make_region_set(store))
    gateway = Gateway(tmp_path)
    items = gateway.client.get("/v1/models").json()["items"]
    assert [(item["record"]["model"], item["served"]) for item in items] == [("toy", False)]
    assert gateway.client.get("/v1/models/toy/2").status_code == 404
    answer = gateway.client.post("/v1/models/toy/1/deploy", json={})
    assert answer.status_code == 202
    assert gateway.work(answer.json()["job"]).state == "done"
    assert gateway.client.get("/v1/models/toy/1").json()["served"]
    again = gateway.client.post("/v1/models/toy/1/deploy", json={}).json()["job"]
    assert again != answer.json()["job"]
    request = gateway.resources.root.get_json(f"jobs/{again}/request.json")["request"]
    assert request["number"] == 2


def test_deployments_that_wait_have_numbers_of_their_own(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    publish_toy_model(store, make_region_set(store))
    client = Gateway(tmp_path).client
    jobs = [
        client.post("/v1/models/toy/1/deploy", json={"device": device}).json()["job"]
        for device in ("cpu", "cuda", "cpu")
    ]
    requests = [store.get_json(f"jobs/{job}/request.json")["request"] for job in jobs]
    assert [request["number"] for request in requests] == [1, 2, 3]


def test_runs_show_their_curves_and_sheets(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path)
    store = gateway.resources.root
    store.put("training/r/metrics/denoiser-00000002.jsonl", b'{"step": 1, "loss": 2.5}\n')
    store.put("training/r/metrics/denoiser-00000004.jsonl", b'{"step": 3, "loss": 1.5}\n')
    store.put("training/r/samples/00000004.png", b"png")
    assert gateway.client.get("/v1/runs").json()["items"] == ["r"]
    run = gateway.client.get("/v1/runs/r").json()
    assert [row["loss"] for row in run["curves"]["denoiser"]] == [2.5, 1.5]
    assert run["samples"] == ["00000004.png"]
    assert gateway.client.get("/v1/runs/r/samples/00000004.png").content == b"png"
    assert gateway.client.get("/v1/runs/none").status_code == 404


def test_reports_are_listed_and_shown(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path)
    publish_toy_model(gateway.resources.root, make_region_set(gateway.resources.root))
    body = {"dataset": "d", "model": "toy", "images": 4, "steps": 1}
    gateway.work(gateway.client.post("/v1/datasets", json=body).json()["job"])
    ask = {"report": "r", "dataset": "d", "segmenter_steps": 1, "encoders": ["efficientnet-lite0"]}
    submit(gateway, "evaluate", ask)
    (found,) = gateway.client.get("/v1/reports", params={"dataset": "d"}).json()["items"]
    report = gateway.client.get("/v1/reports/r").json()
    assert (found["report"], found["model"], found["images"]) == ("r", "toy/1", 4)
    rows = report["fidelity"][0]["rows"]
    assert found["frechet"] == {"efficientnet-lite0": rows["dataset"]["frechet"]}
    assert found["floor"] == {"efficientnet-lite0": rows["floor"]["frechet"]}
    assert found["mean_iou"]["synthetic"] == report["segmentation"]["synthetic"]["mean_iou"]
    assert gateway.client.get("/v1/reports", params={"model": "toy/2"}).json()["items"] == []
    page = gateway.client.get("/v1/reports/r/page")
    assert page.headers["Content-Type"].startswith("text/html")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "sandbox;" in policy
    shown = gateway.client.get("/datasets/d").text
    assert 'href="/v1/reports/r/page"' in shown
    assert f"{found['mean_iou']['synthetic']:.3f} / {found['mean_iou']['real']:.3f}" in shown
    assert gateway.client.get("/v1/reports/none").status_code == 404
    assert gateway.client.get("/v1/reports/none/page").status_code == 404


REPORT = Path(__file__).parents[2] / "benchmarks/results/quality.json"
"""Holds a report."""


def assert_holds(new: Any, old: Any) -> None:
    """Check that a document has all keys and values of another."""
    if isinstance(old, dict):
        for key, value in old.items():
            assert_holds(new[key], value)
    elif isinstance(old, list):
        assert len(new) == len(old)
        for one, other in zip(new, old, strict=True):
            assert_holds(one, other)
    else:
        assert new == old


def test_reports_of_an_earlier_release_still_open(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path)
    report = json.loads(REPORT.read_text())["report"]
    # what later releases added
    del report["segmenter"]["imagenet"], report["missing"], report["refused"]
    for part in (report["appearance"], *report["fidelity"]):
        del part["membership"], part["per_patient"]
    for part in report["fidelity"]:
        del part["reference"], part["rows"]["train"]["own_slides"]
    for part in (report["real_test"], report["real_train"]):
        del part["classes"], part["patients"]
    del report["appearance"]["detail"], report["faithfulness"]["trained_on"]
    gateway.resources.root.put_json("reports/quality/report.json", report | {"forgotten": 1})
    assert_holds(gateway.client.get("/v1/reports/quality").json(), report)
    (info,) = gateway.client.get("/v1/reports", params={"model": "quality/1"}).json()["items"]
    for field, row in (("frechet", "dataset"), ("floor", "floor")):
        assert info[field] == {
            part["encoder"]: part["rows"][row]["frechet"] for part in report["fidelity"]
        }
    assert info["mean_iou"] == {
        source: scores["mean_iou"] for source, scores in report["segmentation"].items()
    }
    assert info["faithfulness"] == report["faithfulness"]["mean_iou"]
