"""What goes wrong with Triton: it is killed or frozen, and its models are unloaded or replaced."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress

from tritonclient.utils import InferenceServerException

from services.deploy.stage import DeployStage
from shared.contracts.deploy import DeployRequest, served_model
from shared.contracts.tenants import LOCAL
from shared.errors import HeteroTissueError
from shared.jobs import Ledger, run_job
from shared.serving.client import Server
from shared.serving.deployments import deployments, next_number
from shared.serving.protocol import PARTS, served_name
from tests.chaos.faults import Chaos

MODEL = "toy"


def deploy(ledger: Ledger) -> None:
    """Deploy the toy model under a new number, and retire the oldest of three deployments."""
    request = DeployRequest(model=MODEL, number=next_number(ledger, MODEL))
    status = run_job(ledger, DeployStage(), ledger.submit(request))
    if status.state != "done":
        raise HeteroTissueError(f"the toy model cannot be deployed: {status.failed}")


def _server(chaos: Chaos) -> Server:
    return Server(chaos.stack.environment["HTD_TRITON_URL"])


def _end(chaos: Chaos, number: signal.Signals, longest: float) -> None:
    os.killpg(chaos.stack.find("triton").child.pid, number)
    chaos.pause(0, longest)
    chaos.stack.restart("triton")
    _server(chaos).wait(120)


def _freeze(chaos: Chaos) -> None:
    group = chaos.stack.find("triton").child.pid
    os.killpg(group, signal.SIGSTOP)
    chaos.pause(1, 5)
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGCONT)


def _unload(chaos: Chaos) -> None:
    """Unload what is loaded, in any order, as somebody does by hand."""
    client = _server(chaos).client
    names = [
        served_name(served_model(owner or LOCAL, MODEL), each.number, part)
        for owner, ledger in chaos.ledgers.items()
        for each in deployments(ledger.store, MODEL)
        for part in PARTS
    ]
    chaos.rng.shuffle(names)
    for name in names:
        with suppress(InferenceServerException):  # it is not loaded
            client.unload_model(name)


def _replace(chaos: Chaos) -> None:
    for ledger in chaos.ledgers.values():
        deploy(ledger)


TRITON_FAULTS: dict[str, Callable[[Chaos], None]] = {
    "triton killed": lambda chaos: _end(chaos, signal.SIGKILL, 3),
    "triton told to end": lambda chaos: _end(chaos, signal.SIGTERM, 3),
    "triton frozen": _freeze,
    "models unloaded": _unload,
    "models deployed again": _replace,
}
"""Faults of stacks that have a Triton server."""
