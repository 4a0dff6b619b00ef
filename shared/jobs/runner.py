"""Running a whole job in this process, for tests, notebooks and first use."""

from __future__ import annotations

from itertools import chain
from typing import Any

from shared.contracts.jobs import JobStatus
from shared.jobs.execution import execute
from shared.jobs.leases import NoLeases
from shared.jobs.ledger import Ledger
from shared.jobs.reporting import Reporter
from shared.jobs.stage import FINISH, PLAN, Stage
from shared.settings import Settings, settings


def run_job(
    ledger: Ledger,
    stage: Stage[Any],
    job: str,
    *,
    reporter: Reporter | None = None,
    config: Settings | None = None,
) -> JobStatus:
    """Run all units of a submitted job, one after another, and return its final status."""
    reporter = reporter or Reporter()
    config = config or settings()
    leases = NoLeases()
    while True:
        units = ledger.waiting(job)
        first = next(units, None)
        if first is None:
            return ledger.status(job)
        phase, phases, settled, total = _progress(ledger, job, first)
        for unit in chain([first], units):
            reporter.phase(job, phase, phases, settled, total)
            execute(ledger, stage, job, unit, leases=leases, reporter=reporter, config=config)
            settled += 1
        reporter.phase(job, phase, phases, total, total)


def _progress(ledger: Ledger, job: str, unit: str) -> tuple[int, int, int, int]:
    """Return the phase of a unit that waits, and the phases; its settled units, and its units."""
    snapshot = ledger.snapshot(job)
    plan = snapshot.plan
    phases = len(plan.counts) if plan else 0
    if plan is None or unit in (PLAN, FINISH):
        return (-1 if unit == PLAN else phases), phases, 0, 1
    phase = plan.find(unit)[0].phase
    settled = sum(map(snapshot.count_done, plan.segments(phase))) + len(snapshot.parked)
    return phase, phases, settled, plan.counts[phase]
