"""A toy stage that sums numbers in two phases, and a worker for it: `python -m tests.toy`.

Its parts write one object each; faults are asked for in the request.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from shared.contracts.base import Request
from shared.errors import InputError
from shared.jobs import Context, Plan, Shard, Stage


class ToyRequest(Request):
    """Sum the squares of 0 … `parts` - 1; `faults` names what goes wrong in which part."""

    stage: ClassVar[str] = "toy"
    name: str = "toy"
    parts: int = 4
    seconds: float = 0.0
    faults: dict[str, str] = Field(default_factory=dict)


class ToyStage(Stage[ToyRequest]):
    """Squares, then halves of their sum."""

    name: ClassVar[str] = "toy"
    request = ToyRequest

    def plan(self, request: ToyRequest, context: Context) -> Plan:
        if request.parts > 1000:
            raise InputError("too many parts: at most 1000")
        squares = tuple(Shard(id=f"square-{i}", args={"i": i}) for i in range(request.parts))
        return Plan(phases=(squares, (Shard(id="sum-a"), Shard(id="sum-b"))))

    def run(self, request: ToyRequest, shard: Shard, context: Context) -> dict[str, Any]:
        fault = request.faults.get(shard.id)
        if fault == "input":
            raise InputError(f"{shard.id} is bad")
        if fault == "always":
            raise RuntimeError("broken")
        once = f"toy/{request.name}/fault-{shard.id}"
        if fault == "once" and not context.store.exists(once):
            context.store.inner.put(once, b"")
            raise RuntimeError("flaky")
        if fault == "kill" and not context.store.exists(once):
            context.store.inner.put(once, b"")
            os.kill(os.getpid(), signal.SIGKILL)
        end = time.monotonic() + request.seconds
        while time.monotonic() < end:
            context.progress(0, 1, "busy")
            time.sleep(0.02)
        if shard.id.startswith("square-"):
            i = int(str(shard.args["i"]))
            context.store.put(f"toy/{request.name}/{shard.id}", str(i * i).encode())
            return {"square": i * i}
        keys = context.store.list(f"toy/{request.name}/square-")
        total = sum(int(context.store.get(key)) for key in keys)
        context.store.put(f"toy/{request.name}/{shard.id}", str(total).encode())
        return {"sum": total}

    def finish(
        self, request: ToyRequest, done: Mapping[str, dict[str, Any]], context: Context
    ) -> dict[str, Any]:
        sums = [part["sum"] for part in done.values() if "sum" in part]
        context.store.put_json(f"toy/{request.name}/result.json", sums)
        return {"sums": sums}


if __name__ == "__main__":
    from shared.queue.worker import serve

    serve(ToyStage())
