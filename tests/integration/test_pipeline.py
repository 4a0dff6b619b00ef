"""The whole mission, small: slides to report, in process and over the local stack."""

from __future__ import annotations

from pathlib import Path

import pytest

from heterotissue.running import Target, run_request
from heterotissue.stack.supervisor import Stack
from heterotissue.stages import load_stage
from shared.contracts.base import Request
from shared.contracts.cluster import ClusterRequest
from shared.contracts.embed import EmbedRequest
from shared.contracts.evaluate import EvaluateRequest
from shared.contracts.ingest import IngestRequest, PatchGrid, SlideSource
from shared.contracts.recipe import DenoiserRecipe, Recipe, VaeRecipe
from shared.contracts.regions import RegionRule
from shared.contracts.requests import REQUESTS
from shared.contracts.synthesize import DatasetRequest
from shared.contracts.train import TrainRequest
from shared.jobs import Ledger, run_job
from shared.phantom import PHANTOM_CLASSES, write_phantom
from shared.settings import Settings
from shared.storage import DirectoryStore, Store
from tests.phantoms import PHANTOM_SEED
from tests.policies import Policed

RULE = RegionRule(size=64, mpp=1.0, max_per_slide=20)
RECIPE = Recipe(
    name="toy", size=64, segment_steps=2, sample_every=4,
    vae=VaeRecipe(channels=(8, 16, 16), latent_channels=4, steps=4, batch_size=2, crop=64),
    denoiser=DenoiserRecipe(
        channels=(32, 64), attention=(False, True), condition_channels=32, steps=4, batch_size=4
    ),
)  # fmt: skip


def requests(slides: list[str]) -> list[Request]:
    """One request of every stage, on slides in the store."""
    sources = tuple(
        SlideSource(
            slide=name,
            source=f"slides/{name}/source/{name}.tiff",
            labels=f"slides/{name}/annotation/{name}.geojson",
            split="train" if number else "test",
        )
        for number, name in enumerate(slides)
    )
    return [
        IngestRequest(
            cohort="c", slides=sources, classes=PHANTOM_CLASSES, regions=RULE,
            patches=PatchGrid(size=32, mpp=1.0, stride=16, min_tissue=0.7),
        ),
        EmbedRequest(cohort="c", train_steps=3, train_patches=64),
        ClusterRequest(
            run="t", cohort="c", k=4, sample_per_slide=50, classifier_steps=3, regions=RULE
        ),
        TrainRequest(run="m", regions="c", recipe=RECIPE, model="m"),
        DatasetRequest(
            dataset="d", model="m", images=8, steps=3, shard_size=4, batch_size=4,
            exports=("folder", "coco", "geojson"),
        ),
        EvaluateRequest(report="r", dataset="d", segmenter_steps=2, segmenter_batch=4),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for name, height in (("a", 2048), ("b", 1536)):
        write_phantom(folder, f"phantom-{name}", 2048, height, PHANTOM_SEED)
    return folder


def upload(store: Store, folder: Path) -> list[str]:
    names = sorted(path.stem for path in folder.glob("*.tiff") if not path.stem.endswith("_mask"))
    for name in names:
        store.put_file(f"slides/{name}/source/{name}.tiff", folder / f"{name}.tiff")
        store.put_file(f"slides/{name}/annotation/{name}.geojson", folder / f"{name}.geojson")
    return names


def run_all(target: Target, folder: Path) -> dict[str, bytes]:
    """Run every stage and return all objects but the jobs' own."""
    for request in requests(upload(target.store, folder)):
        status = run_request(target, request)
        assert status.state == "done", (request.stage, status.failed)
    return objects(target.store)


def run_with_policies(store: Store, folder: Path) -> dict[str, bytes]:
    """Run every stage in this process, with the rights that its worker has on an S3 server."""
    for request in requests(upload(store, folder)):
        job = Ledger(store).submit(request)
        ledger = Ledger(Policed(store, request.stage))
        status = run_job(ledger, load_stage(request.stage), job, config=Settings())
        assert status.state == "done", (request.stage, status.failed)
    return objects(store)


def objects(store: Store) -> dict[str, bytes]:
    """Return all objects but the jobs' own."""
    own = ("jobs/", "open-jobs/", "names/")
    return {key: store.get(key) for key in store.list() if not key.startswith(own)}


def test_the_stack_gives_the_bytes_of_one_process(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = run_with_policies(DirectoryStore(tmp_path / "store"), slides)
    for key in (
        "cohorts/c.json", "features/embedded/c/phantom-a.h5", "clusters/t/gallery.png",
        "models/m/1/model_index.json", "datasets/d/manifest.parquet", "reports/r/report.html",
    ):  # fmt: skip
        assert key in here
    monkeypatch.setenv("HTD_RECONCILE_SECONDS", "2")
    with Stack(tmp_path / "stack", list(REQUESTS), print) as stack:
        there = run_all(Target.of_config(stack.config), slides)
    assert here.keys() == there.keys()
    different = [key for key in here if here[key] != there[key]]
    assert different == []
