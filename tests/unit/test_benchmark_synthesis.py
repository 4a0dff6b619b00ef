"""The benchmark of synthesis: that it compares like with like, and notices what breaks."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from benchmarks import synthesis
from benchmarks.batches import Batch, PlainPipeline, batched, compose, val_bank
from benchmarks.synthesis import distances, latency
from shared.contracts.base import Split
from shared.contracts.models import ModelRecord, ModelRef
from shared.contracts.sampling import Sampling
from shared.diffusion.model_store import load_model
from shared.storage import DirectoryStore
from tests.models import publish_toy_model
from tests.region_sets import make_region_set


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    made = DirectoryStore(tmp_path)
    slides: dict[str, Split] = {"a": "train", "b": "val", "c": "val"}
    publish_toy_model(made, make_region_set(made, splits=slides))
    return made


@pytest.fixture
def model(store: DirectoryStore) -> ModelRecord:
    return load_model(store, ModelRef("toy", "1"), "cpu").record


def test_the_plain_pipeline_makes_the_images_of_the_same_model(
    store: DirectoryStore, model: ModelRecord
) -> None:
    sampler = load_model(store, ModelRef("toy", "1"), "cpu")
    (batch,) = batched(compose(val_bank(store, model), model, 3))
    ours = sampler.generate(
        batch.labels,
        batch.crops,
        batch.seeds,
        Sampling(
            steps=4, guidance_map=1.5, guidance_crops=1.5, guidance_low=0, guidance_high=1,
            staining=0, first_order=True,
        ),
    )  # fmt: skip
    plain = PlainPipeline(
        sampler.pipeline.vae, sampler.pipeline.denoiser, FlowMatchEulerDiscreteScheduler()
    )
    # Its last step is one thousandth of the way.
    assert np.abs(plain(batch, steps=5).astype(int) - ours).max() <= 2


def test_distances_are_to_the_windows_that_the_maps_were_cut_from(
    store: DirectoryStore, model: ModelRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []

    class Encoder:
        def encode(self, images: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
            seen.append(images.shape)
            return images.reshape(len(images), -1)[:, :4].astype(np.float32)

    monkeypatch.setattr(synthesis, "load_encoder", lambda name, store: Encoder())
    ways = {"grey": lambda batch: np.full((*batch.labels.shape, 3), 128, np.uint8)}
    found = distances(store, model, ways, 10)  # type: ignore[arg-type]
    assert seen == [(10, 32, 32, 3)] * 2
    assert set(found["rows"]) == {"floor", "grey"}
    assert found["rows"]["grey"]["frechet"] > found["rows"]["floor"]["frechet"]


def some_batches() -> list[Batch]:
    return [Batch(np.zeros((4, 8, 8), np.uint8), [[]] * 4, [0] * 4)]


def test_latency_counts_what_is_made_between_two_batches_that_end() -> None:
    def bulk(batch: Batch) -> np.ndarray:  # type: ignore[type-arg]
        time.sleep(0.05)
        return batch.labels

    found = latency(bulk, lambda batch: batch.labels, some_batches(), requests=5, pause=0.05)
    assert 0.4 < found["bulk_kept"] < 2.5  # nothing takes anything from it
    assert {"idle_p50", "idle_p95", "busy_p50", "busy_p95", "ratio_p50", "ratio_p95"} <= set(found)


def test_latency_is_not_measured_beside_bulk_work_that_has_failed() -> None:
    def bulk(batch: Batch) -> np.ndarray:  # type: ignore[type-arg]
        raise ConnectionError("the server is gone")

    with pytest.raises(ConnectionError, match="the server is gone"):
        latency(bulk, lambda batch: batch.labels, some_batches(), requests=2, pause=0.01)
