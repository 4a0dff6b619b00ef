"""How long the segmenters of an evaluation will take, from a few steps measured here."""

from __future__ import annotations

import time

import numpy as np

from heterotissue.progress import duration
from shared.arrays import UInt8
from shared.computing import prepare
from shared.contracts.base import Classes
from shared.contracts.evaluate import EvaluateRequest
from shared.contracts.models import ModelRef
from shared.contracts.regions import RegionSet, region_set_key
from shared.datasets.samples import load_dataset
from shared.device import choose_device
from shared.jobs import Ledger
from shared.models import read_model
from shared.settings import Settings
from shared.storage import Store

MEASURED_STEPS = 2
FORWARD = 1 / 3
"""Cost of scoring an image, as a share of training on it."""


class _Noise:
    """Images of noise with label maps of all classes, to measure on."""

    def __init__(self, size: int, classes: Classes) -> None:
        rng = np.random.default_rng(0)
        self.image = rng.integers(256, size=(size, size, 3), dtype=np.uint8)
        self.labels = rng.integers(classes.first, len(classes), size=(size, size), dtype=np.uint8)

    def __len__(self) -> int:
        return 1

    def pair(self, number: int) -> tuple[UInt8, UInt8]:
        return self.image, self.labels

    def origins(self, number: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return ("noise",), ("noise",)


def segmenter_line(
    store: Store, request: EvaluateRequest, config: Settings, *, fresh: bool = False
) -> str | None:
    """Say about how long the segmenters of a request will take here; None if all are trained.

    Args:
        store: the store of the dataset.
        request: the evaluation.
        config: settings of the process: threads and device.
        fresh: count segmenters that are trained already, too.

    Raises:
        InputError: the dataset is missing, or there is no such segmenter.
    """
    ledger = Ledger(store)
    done = frozenset() if fresh else ledger.done(ledger.identify(request))
    record = load_dataset(store, request.dataset)
    regions = request.regions or read_model(store, ModelRef.parse(record.model)).regions
    parts = store.get_model(region_set_key(regions), RegionSet).of_split(*request.real_test)
    tested = sum(part.regions for part in parts)
    return describe(
        request, record.size, record.classes, tested, config,
        done=sum(unit.startswith("segmenter-") for unit in done),
    )  # fmt: skip


def describe(
    request: EvaluateRequest,
    size: int,
    classes: Classes,
    tested: int,
    config: Settings,
    *,
    done: int = 0,
) -> str | None:
    """Measure a step of training and write the estimate in a line; None if nothing is to do.

    Args:
        request: the evaluation.
        size: side of an image, pixels.
        classes: classes of the dataset.
        tested: number of real test images.
        config: settings of the process: threads and device.
        done: number of segmenters that are trained already.
    """
    prepare(config.threads)  # before torch is imported below
    from services.evaluate.usefulness import MAX_SCORED, training_sets

    count = request.seeds * len(training_sets(request)) - done
    if count <= 0:
        return None
    step = seconds_per_step(request, size, classes, config)
    scored = min(tested, MAX_SCORED) / request.segmenter_batch * FORWARD
    seconds = count * step * (request.segmenter_steps + scored)
    return (
        f"estimate: {count} segmenters × {request.segmenter_steps} steps × {step:.2g} s (measured "
        f"here) = about {duration(seconds)}; features of the encoders "
        f"({', '.join(request.encoders)}) come on top"
    )


def seconds_per_step(
    request: EvaluateRequest, size: int, classes: Classes, config: Settings
) -> float:
    """Train a segmenter on noise for a few steps; return the seconds of one, after the first."""
    from services.evaluate.segmentation import make_segmenter, train_segmenter

    times: list[float] = []
    train_segmenter(
        make_segmenter(request.segmenter_encoder, classes, 0),
        _Noise(size, classes),
        first=classes.first,
        size=size,
        steps=MEASURED_STEPS + 1,
        batch=request.segmenter_batch,
        seed=0,
        device=choose_device(config.device),
        progress=lambda _: times.append(time.perf_counter()),
    )
    return (times[-1] - times[0]) / MEASURED_STEPS
