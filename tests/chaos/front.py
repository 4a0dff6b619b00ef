"""What goes wrong at the front door: the gateway is killed or frozen while it takes a request."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx2

from heterotissue.stack.servers import gateway_answers
from shared.contracts.synthesize import DatasetRequest
from tests.chaos.faults import Chaos

SECONDS = 120.0
"""Longest time until a request is accepted."""


def _ask(chaos: Chaos, name: str, told: list[dict[str, Any]]) -> None:
    """Ask for a dataset until the gateway has accepted it, always with the same key."""
    body = {
        "dataset": name, "model": "toy", "images": 24, "shard_size": 2, "batch_size": 2,
        "exports": ["coco"],
    }  # fmt: skip
    headers = {"Authorization": f"Bearer {chaos.stack.token}", "Idempotency-Key": name}
    deadline = time.monotonic() + SECONDS
    while not told and time.monotonic() < deadline:
        with suppress(httpx2.TransportError):
            answer = httpx2.post(f"{chaos.stack.url}/v1/datasets", json=body, headers=headers)
            if answer.is_success:
                told.append(answer.json())
        time.sleep(0.1)


def _while_it_is_asked(chaos: Chaos, disturb: Callable[[Chaos], None]) -> None:
    """Disturb the gateway while it takes a request; the dataset is one of the round's then."""
    told: list[dict[str, Any]] = []
    name = f"front-{chaos.rng.randrange(10**9)}"
    client = threading.Thread(target=_ask, args=(chaos, name, told))
    client.start()
    chaos.pause(0, 0.3)
    disturb(chaos)
    client.join()
    if not told:
        raise RuntimeError(f"the gateway did not accept {name} within {SECONDS:.0f} s")
    ledger, job = chaos.ledgers[""], str(told[0]["job"])
    chaos.jobs[job] = (ledger, DatasetRequest.model_validate(ledger.request(job)))


def _kill(chaos: Chaos) -> None:
    with suppress(ProcessLookupError):
        os.killpg(chaos.stack.find("gateway").child.pid, signal.SIGKILL)
    chaos.pause(0, 1)
    chaos.stack.restart("gateway")
    deadline = time.monotonic() + SECONDS
    while not gateway_answers(chaos.stack.url) and time.monotonic() < deadline:
        time.sleep(0.1)


def _freeze(chaos: Chaos) -> None:
    group = chaos.stack.find("gateway").child.pid
    os.killpg(group, signal.SIGSTOP)
    chaos.pause(1, 3)
    os.killpg(group, signal.SIGCONT)


FRONT_FAULTS: dict[str, Callable[[Chaos], None]] = {
    "gateway killed": lambda chaos: _while_it_is_asked(chaos, _kill),
    "gateway frozen": lambda chaos: _while_it_is_asked(chaos, _freeze),
}
"""Faults of stacks that have a gateway; only real datasets can be asked for there."""
