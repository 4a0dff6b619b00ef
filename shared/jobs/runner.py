"""Running a whole job in this process, for tests, notebooks and first use."""

from __future__ import annotations

from typing import Any

from shared.contracts.jobs import JobStatus
from shared.jobs.execution import execute
from shared.jobs.leases import NoLeases
from shared.jobs.ledger import Ledger
from shared.jobs.reporting import Reporter
from shared.jobs.stage import Stage
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
        snapshot = ledger.snapshot(job)
        phase, units = snapshot.runnable
        if not units:
            return snapshot.status()
        plan = snapshot.plan
        phases = len(plan.phases) if plan else 0
        total = len(plan.phases[phase]) if plan and 0 <= phase < phases else 1
        for unit in units:
            reporter.phase(job, phase, phases, total - len(units) + units.index(unit), total)
            execute(ledger, stage, job, unit, leases=leases, reporter=reporter, config=config)
        reporter.phase(job, phase, phases, total, total)
