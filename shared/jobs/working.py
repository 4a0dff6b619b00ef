"""Working on the open jobs of a store without a queue, as on a cluster with a shared folder."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

from shared.jobs.execution import execute
from shared.jobs.leases import StoreLeases
from shared.jobs.ledger import Ledger
from shared.jobs.records import UnreadableRecordError
from shared.jobs.reporting import Reporter
from shared.jobs.snapshot import stage_of
from shared.jobs.stage import Stage
from shared.settings import Settings
from shared.storage import ObjectNotFoundError

LONGEST_WAIT_SECONDS = 30.0
POLL_SECONDS = 2.0
AHEAD = 64
"""Waiting units of a job from which a process draws the one that it tries."""

log = logging.getLogger(__name__)


def work(
    ledger: Ledger,
    stage: Stage[Any],
    config: Settings,
    *,
    job: str | None = None,
    unit: str | None = None,
    until_idle: bool = True,
    poll_seconds: float = POLL_SECONDS,
    pause: Callable[[float], object] = time.sleep,
) -> int:
    """Run units of the open jobs of a stage, a unit of each job in turn; return how many.

    Any number of processes may do so on the same store: leases in the store keep them apart.

    Args:
        ledger: ledger of the store.
        stage: the stage.
        config: settings of the process.
        job: work on this job alone.
        unit: run this unit of `job` alone, if its turn has come.
        until_idle: end as soon as no job is open; else wait for more.
        poll_seconds: seconds between two looks at jobs that others work on.
        pause: waits for some seconds.
    """
    leases = StoreLeases(ledger.store, config.lease_seconds)
    ran = 0

    def run(job: str, unit: str) -> None:
        nonlocal ran
        reporter = Reporter()

        def wait(error: Exception, waits: int) -> None:
            wait_for_world(reporter, job, unit, error, waits)

        execute(
            ledger, stage, job, unit, leases=leases, reporter=reporter, config=config, wait=wait
        )
        ran += 1

    if job is not None and unit is not None:
        run(job, unit)
        return ran
    while True:
        jobs = [job] if job else [j for j in ledger.open_jobs() if stage_of(j) == stage.name]
        open_, before = False, ran
        for each in jobs:
            try:
                if not (ledger.is_open(each) and ledger.tidy(each)):
                    continue
                units = list(islice(ledger.waiting(each), AHEAD))
            except (UnreadableRecordError, ObjectNotFoundError) as error:  # other jobs go on
                if job is not None:
                    raise
                log.error("job %s is left out: %s", each, error)
                continue
            open_ = True
            # A random one of those that wait: processes that begin together seldom meet.
            random.shuffle(units)
            for unit_ in units:
                if not leases.alive(f"{each}/{unit_}"):
                    run(each, unit_)
                    break
        if ran == before:
            if until_idle and not open_:
                return ran
            pause(poll_seconds)


def wait_for_world(reporter: Reporter, job: str, unit: str, error: Exception, waits: int) -> None:
    """Wait for the end of a fault, twice as long each time, and say what for.

    Args:
        reporter: shows the reason to those who follow the job.
        job, unit: the unit that waits.
        error: the fault.
        waits: number of waits before this one.
    """
    seconds = min(LONGEST_WAIT_SECONDS, 2.0**waits)
    log.warning("%s: %s waits %.1f s: %s", job, unit, seconds, error)
    reporter.unit(job, unit, 0, 1, f"waits: {error}"[:200])
    time.sleep(seconds)
