"""A stage that makes datasets of tiny pictures, and its worker: `python -m tests.chaos.stage`.

It needs no network and no model, so that a worker starts within a second. Its objects lie as
those of real datasets do.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shared.contracts.base import Request
from shared.imaging.codec import encode_png
from shared.jobs import Context, Plan, Shard, Stage
from shared.storage import sha256
from shared.storage.formats import pack_tar, table_bytes

LOG = "CHAOS_LOG"
"""Environment variable: folder where each process notes the shards that it has computed."""

SEGMENT = "CHAOS_SEGMENT"
"""Environment variable: number of shards in a segment of a plan."""

TABLES = 3
"""Number of shards of the second phase, which join what the first has made."""


class ChaosRequest(Request):
    """A dataset of `images` pictures, `shard_size` in a shard, each shard taking `seconds`."""

    stage: ClassVar[str] = "chaos"
    dataset: str
    images: int = 48
    shard_size: int = 2
    seconds: float = 0.2

    def products(self) -> list[str]:
        return [f"datasets/{self.dataset}"]


class ChaosStage(Stage[ChaosRequest]):
    """Pictures, then tables of them, then one manifest."""

    name: ClassVar[str] = "chaos"
    request = ChaosRequest

    def plan(self, request: ChaosRequest, context: Context) -> Plan:
        shards = [
            Shard(id=f"shard-{number:06d}", args={"number": number, "start": start})
            for number, start in enumerate(range(0, request.images, request.shard_size))
        ]
        tables = [
            Shard(id=f"table-{n}", args={"n": n}, after=tuple(s.id for s in shards[n::TABLES]))
            for n in range(min(TABLES, len(shards)))
        ]
        return Plan(phases=(tuple(shards), tuple(tables)))

    def run(self, request: ChaosRequest, shard: Shard, context: Context) -> dict[str, Any]:
        end = time.monotonic() + request.seconds
        store = context.store
        if shard.id.startswith("table-"):
            rows = [row for number in shard.after for row in json.loads(store.get(
                _key(request, f"rows/{number}.json")))]  # fmt: skip
            store.put_json(_key(request, f"tables/{shard.id}.json"), rows)
        else:
            number, start = int(str(shard.args["number"])), int(str(shard.args["start"]))
            stop = min(start + request.shard_size, request.images)
            pictures = {f"{index:08d}": picture(request, index) for index in range(start, stop)}
            key = _key(request, f"shards/{number:06d}.tar")
            store.put(key, pack_tar((f"{name}.png", data) for name, data in pictures.items()))
            rows = [
                {"index": int(name), "shard": key, "image": f"{name}.png", "sha256": sha256(data)}
                for name, data in pictures.items()
            ]
            store.put_json(_key(request, f"rows/{shard.id}.json"), rows)
        while (left := end - time.monotonic()) > 0:
            context.progress(0, 1, "busy")
            time.sleep(min(0.05, left))
        _note(request.dataset, shard.id)
        return {"images": len(rows)}

    def finish(
        self, request: ChaosRequest, done: Mapping[str, dict[str, Any]], context: Context
    ) -> dict[str, Any]:
        rows = [
            row
            for name in sorted(done)
            if name.startswith("table-")
            for row in json.loads(context.store.get(_key(request, f"tables/{name}.json")))
        ]
        table = pa.Table.from_pylist(sorted(rows, key=lambda row: row["index"]))
        context.store.put(_key(request, "manifest.parquet"), table_bytes(table))
        return {"images": pq.read_table(io.BytesIO(table_bytes(table))).num_rows}


def picture(request: ChaosRequest, index: int) -> bytes:
    """Draw the picture of an index, 32 × 32 pixels, as PNG."""
    seed = hashlib.sha256(f"{request.dataset}/{index}".encode()).digest()
    rng = np.random.default_rng(list(seed))
    return encode_png(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8))


def _key(request: ChaosRequest, name: str) -> str:
    return f"datasets/{request.dataset}/{name}"


def _note(dataset: str, unit: str) -> None:
    folder = os.environ.get(LOG)
    if folder:
        with (Path(folder) / f"{os.getpid()}.log").open("a") as log:
            log.write(f"{dataset} {unit}\n")


if __name__ == "__main__":
    from shared.jobs import plan
    from shared.queue.worker import serve

    plan.SEGMENT = int(os.environ.get(SEGMENT, plan.SEGMENT))
    serve(ChaosStage())
