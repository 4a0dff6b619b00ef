"""How long embedding a cohort will take, from a few steps and patches measured here."""

from __future__ import annotations

import time

import numpy as np

from heterotissue.progress import duration
from shared.computing import prepare
from shared.contracts.embed import EmbedRequest
from shared.contracts.ingest import CohortRecord, cohort_key
from shared.contracts.jobs import ENDED
from shared.device import choose_device
from shared.errors import InputError
from shared.imaging.stored_slides import count_patches, open_slide
from shared.jobs import Ledger
from shared.settings import Settings
from shared.storage import Store

MEASURED_STEPS = 2
MEASURED_PATCHES = 16


def embedding_line(
    store: Store, request: EmbedRequest, config: Settings, *, fresh: bool = False
) -> str | None:
    """Say about how long a request will take here; None for an import, and if it is done already.

    Args:
        store: the store of the cohort.
        request: the request.
        config: settings of the process: threads and device.
        fresh: whether all is to be done again.

    Raises:
        InputError: the cohort is missing.
    """
    ledger = Ledger(store)
    before = ledger.find(ledger.identify(request))
    done = before is not None and before.state in ENDED and not fresh
    if request.imported is not None or done:
        return None
    prepare(config.threads)  # before torch is imported below
    record = store.get_model(cohort_key(request.cohort), CohortRecord)
    try:
        counts = {name: count_patches(store, record, name) for name in record.splits}
        patches, largest = sum(counts.values()), max(counts, key=lambda name: counts[name])
        if not patches:
            return None
        each = seconds_per_patch(store, request, record, largest, config)
    except InputError:  # of one slide; the job says so, and does the others
        return None
    text, seconds = f"{patches:,} patches × {each * 1000:.2g} ms", patches * each
    if request.encoder == "embedded":
        step = seconds_per_step(config)
        text = f"{request.train_steps} steps of the encoder × {step:.2g} s (--steps) + {text}"
        seconds += request.train_steps * step
    return f"estimate: {text} (measured here) = about {duration(seconds)}, less what is there"


def seconds_per_step(config: Settings) -> float:
    """Train an encoder on noise for a few steps; return the seconds of one, after the first."""
    from services.embed.training import BATCH, WINDOW, train_encoder

    times: list[float] = []
    rng = np.random.default_rng(0)
    train_encoder(
        rng.integers(256, size=(BATCH, WINDOW, WINDOW, 3), dtype=np.uint8),
        np.zeros(BATCH, np.int64),
        MEASURED_STEPS + 1,
        0,
        choose_device(config.device),
        lambda *_: times.append(time.perf_counter()),
    )
    return (times[-1] - times[0]) / MEASURED_STEPS


def seconds_per_patch(
    store: Store, request: EmbedRequest, record: CohortRecord, slide: str, config: Settings
) -> float:
    """Read and encode some patches of a slide; return the seconds of one."""
    from services.embed.encoding import read_corners
    from shared.encoders import load_encoder
    from shared.imaging.patch_reading import read_patches

    name = "random" if request.encoder == "embedded" else request.encoder
    encoder = load_encoder(
        name,
        store,
        cohort=request.cohort,
        weights=request.weights,
        device=choose_device(config.device),
    )
    size, mpp = record.patches.size, record.patches.mpp
    every = read_corners(store, record, slide)
    corners = every[len(every) // 2 :][:MEASURED_PATCHES]
    encoder.encode(np.zeros((1, size, size, 3), np.uint8))  # not timed: warms up
    began = time.perf_counter()
    with open_slide(store, record, slide) as (opened, _):
        for batch in read_patches(opened, corners, size, mpp, request.batch_size):
            encoder.encode(batch.images, request.batch_size)
    return (time.perf_counter() - began) / len(corners)
