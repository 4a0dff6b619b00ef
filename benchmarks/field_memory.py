"""Compare the peak memory of the jobs that make a large and a small field.

    python benchmarks/field_memory.py --out benchmarks/results/field_memory.json

The networks are stubs and there is one step, so that 32,768 px take minutes. Everything else is the
true job: noise, latents, strips, both pyramids, outlines. The true networks take the same memory in
every field, so with them the ratio is nearer to 1.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.nn import functional

from heterotissue.first_picture import STUDENT, draw_glands, shipped_student, student_recipe
from services.field.stage import FieldStage
from shared.contracts.base import Classes
from shared.contracts.field import FieldRequest, PlacedCrop
from shared.contracts.models import ModelRecord, ModelRef
from shared.datasets.field_inputs import put_crop
from shared.diffusion.fields import FieldSampler
from shared.diffusion.fixed_norms import PieceDecoder
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.errors import JobError
from shared.imaging.label_map import LABEL_TILE, write_label_map
from shared.jobs import Ledger, run_job
from shared.storage import DirectoryStore, sha256_file

MPP = 0.875


def publish(store: DirectoryStore, pipeline: HeteroTissuePipeline, classes: Classes) -> ModelRecord:
    """Publish a pipeline as version 1 of a model."""
    ref, recipe = ModelRef(STUDENT, "1"), student_recipe(store)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pipeline.save_pretrained(folder, safe_serialization=True)
        files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
        for key, path in files.items():
            store.put_file(ref.prefix + key, path)
        weights = {k: sha256_file(path) for k, path in files.items() if path.suffix != ".json"}
    record = ModelRecord(
        model=ref.name, version=ref.version, classes=classes, size=recipe.size, mpp=MPP,
        regions="none", run="none", recipe=recipe, warm_start=None, sha256=weights,
    )  # fmt: skip
    store.put_json(ref.key, record)
    return record


def replace_networks() -> None:
    """Let the denoiser return its input, and the decoder enlarge three channels of the latents."""

    def same(*_: object) -> Callable[[Tensor, float], Tensor]:
        return lambda samples, _: samples

    def enlarge(_: PieceDecoder, latents: Tensor, halo: Sequence[int]) -> Tensor:
        above, below, left, right = halo
        inner = latents[:, :3, above : latents.shape[2] - below, left : latents.shape[3] - right]
        return functional.interpolate(inner, scale_factor=8)

    FieldSampler._guided = same  # type: ignore[method-assign, assignment]
    PieceDecoder.decode = enlarge  # type: ignore[method-assign, assignment]


def run(size: int) -> None:
    """Make a field of `size` px, and print its time in s and the peak memory in MiB."""
    start = time.process_time()
    replace_networks()
    rng = np.random.default_rng(1)
    layout = np.kron(draw_glands(128, rng), np.ones((8, 8), np.uint8))
    with tempfile.TemporaryDirectory() as place:
        store = DirectoryStore(place)
        pipeline, classes, _ = shipped_student(store)
        model = publish(store, pipeline, classes)
        wide = np.tile(layout, (1, -(-size // len(layout))))[:, :size]
        rows = (
            wide[np.arange(top, min(top + LABEL_TILE, size)) % len(layout)]
            for top in range(0, size, LABEL_TILE)
        )
        with store.writing("map.tif") as path:
            write_label_map(path, rows, size, size, MPP)
        square = rng.integers(100, 200, (32, 32, 3), dtype=np.uint8)
        given = (put_crop(store, name, square, model) for name in classes.names)
        crops = tuple(PlacedCrop(**crop.model_dump()) for crop in given)
        request = FieldRequest(field="f", model=STUDENT, labels="map.tif", crops=crops, steps=1)
        ledger = Ledger(store)
        status = run_job(ledger, FieldStage(), ledger.submit(request))
    if status.state != "done":
        raise JobError(str(status.failed))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({"mib": memory, "seconds": time.process_time() - start}))


def main(arguments: Sequence[str] | None = None) -> None:
    """Make both fields, each in its own process, and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs=2, default=(4096, 32768), help="pixels")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    if given.only:
        run(given.only)
        return
    made = {}
    for size in given.sizes:
        command = [sys.executable, __file__, "--only", str(size)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=dict(os.environ))
        made[size] = json.loads(done.stdout.splitlines()[-1])
        print(size, made[size], flush=True)
    small, large = (made[size]["mib"] for size in given.sizes)
    figures = {
        "date": datetime.now(UTC).date().isoformat(),
        "networks": "stubs",
        "memory_ratio": large / small,
        "of": {str(size): own for size, own in made.items()},
    }
    text = json.dumps(figures, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
