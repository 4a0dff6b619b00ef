"""Fields: one image of any size, the same whichever strips it is made in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
import torch

from shared.contracts.field import FieldRecord, FieldRequest, field_key
from shared.contracts.image import GivenCrop
from shared.contracts.jobs import JobStatus
from shared.diffusion.autoencoder import to_raw
from shared.diffusion.fixed_norms import decoder_reach, norm_statistics, with_fixed_norms
from shared.diffusion.model_store import load_model
from shared.contracts.models import ModelRef
from shared.imaging.codec import encode_png
from shared.imaging.label_map import LABEL_TILE, LabelMap, write_label_map
from shared.imaging.marks import Mark, parse_mark
from shared.jobs import Ledger, run_job
from shared.settings import Settings
from services.field.stage import FieldStage
from shared.storage import DirectoryStore
from tests.models import publish_toy_model
from tests.region_sets import make_region_set

WIDTH, HEIGHT = 46, 590


def label_map() -> np.ndarray:  # type: ignore[type-arg]
    labels = np.ones((HEIGHT, WIDTH), np.uint8)
    labels[200:, 20:40] = 2
    labels[400:] = 2
    labels[500:540, 30:] = 0
    return labels


def put_labels(store: DirectoryStore, labels: np.ndarray, mpp: float = 0.5) -> str:  # type: ignore[type-arg]
    height, width = labels.shape
    strips = (labels[y : y + LABEL_TILE] for y in range(0, height, LABEL_TILE))
    with store.writing("fields/inputs/map.tif") as path:
        write_label_map(path, strips, width, height, mpp)
    return "fields/inputs/map.tif"


def make_store(folder: Path) -> DirectoryStore:
    torch.set_num_threads(1)
    store = DirectoryStore(folder)
    publish_toy_model(store, make_region_set(store, splits={"slide-a": "train"}, regions=2))
    put_labels(store, label_map())
    return store


def make(store: DirectoryStore, **fields: Any) -> JobStatus:
    request = FieldRequest.model_validate(
        {
            "field": "f",
            "model": "toy",
            "labels": "fields/inputs/map.tif",
            "steps": 2,
            "guidance_map": 1,
            "guidance_crops": 1,
        }
        | fields
    )
    ledger = Ledger(store)
    job = ledger.submit(request)
    return run_job(ledger, FieldStage(), job, config=Settings(threads=1, device="cpu"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DirectoryStore:
    store = make_store(tmp_path_factory.mktemp("fields"))
    assert make(store, strip=512).state == "done"
    assert make(store, field="whole", strip=2048).state == "done"
    return store


def test_strips_of_any_height_give_the_same_bytes(made: DirectoryStore) -> None:
    for name in ("slide.tiff", "labels.tiff"):
        files = [tifffile.TiffFile(made.local(field_key(field, name))) for field in ("f", "whole")]
        for one, other in zip(*(file.pages for file in files), strict=True):
            np.testing.assert_array_equal(one.asarray(), other.asarray())
