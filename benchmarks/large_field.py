"""Make a large field with the shipped student, and say what it took.

    python -m benchmarks.large_field TRAIN --store STORE --size 20000

TRAIN is a folder of pictures beside their masks, such as EBHI-Seg's, from which the crops are cut;
`--appearances 3` lets three of them fade into each other. The layout is drawn. Run it again after
an interruption: it goes on, and the figures count this run alone. The page Fields shows it, and
`htd ingest` reads its slide.tiff.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.field_memory import MPP, publish
from benchmarks.fields import crops_of, draw_layout, read_tiles
from heterotissue.first_picture import STUDENT, shipped_student
from services.field.stage import FieldStage
from shared.computing import prepare
from shared.contracts.field import FieldRequest, PlacedCrop
from shared.contracts.models import ModelRef
from shared.datasets.field_inputs import put_crop
from shared.errors import JobError
from shared.imaging.label_map import LABEL_TILE, write_label_map
from shared.jobs import Ledger, run_job
from shared.models import read_model
from shared.storage import DirectoryStore

PLACES = ((0.15, 0.2), (0.5, 0.8), (0.85, 0.3))
"""Places of up to three appearances, as shares of width and height."""


def submit(
    store: DirectoryStore, ledger: Ledger, folder: Path, size: int, appearances: int, seed: int
) -> str:
    """Store the layout and the crops, if they are not there, and submit the field."""
    pipeline, classes, rule = shipped_student(store)
    ref = ModelRef(STUDENT, "1")
    if not store.exists(ref.key):
        publish(store, pipeline, classes)
    model = read_model(store, ref)
    rng = np.random.default_rng(seed)
    tiles = read_tiles(folder)
    crops: list[PlacedCrop] = []
    for at in PLACES[:appearances]:
        cut = crops_of(tiles[rng.integers(len(tiles))], rule, rng)
        while len(cut) < len(classes):
            cut = crops_of(tiles[rng.integers(len(tiles))], rule, rng)
        given = (put_crop(store, classes.names[c.label], c.pixels, model) for c in cut)
        crops += [PlacedCrop(**crop.model_dump(), at=at) for crop in given]
    if not store.exists("map.tif"):
        labels = draw_layout(size, size, rng)
        with store.writing("map.tif") as path:
            strips = (labels[top : top + LABEL_TILE] for top in range(0, size, LABEL_TILE))
            write_label_map(path, strips, size, size, MPP)
    return ledger.submit(
        FieldRequest(field="large", model=ref.name, labels="map.tif", crops=tuple(crops), seed=seed)
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the field, and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--size", type=int, default=20_000, help="pixels")
    parser.add_argument("--appearances", type=int, choices=(1, 2, 3), default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    prepare(given.threads)
    store = DirectoryStore(given.store)
    ledger = Ledger(store)
    job = submit(store, ledger, given.folder, given.size, given.appearances, given.seed)
    wall, processor = time.monotonic(), time.process_time()
    status = run_job(ledger, FieldStage(), job)
    if status.state != "done":
        raise JobError(str(status.failed))
    figures = {
        "pixels": given.size**2,
        "seconds": round(time.monotonic() - wall),
        "processor_seconds": round(time.process_time() - processor),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "threads": given.threads,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
