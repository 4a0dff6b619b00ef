"""Running one unit of a job under a lease, recording its outcome, and naming the next units."""

from __future__ import annotations

import logging
import math
import platform
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Literal

from shared.computing import set_threads
from shared.contracts.base import Request
from shared.contracts.jobs import Marker, ParkedUnit, State
from shared.contracts.tenants import LOCAL
from shared.errors import CancelledError, HandedBackError, InputError
from shared.jobs.earlier import before, outputs_of, read_by
from shared.jobs.last_look import check_all
from shared.jobs.late import put_marker, take_back
from shared.jobs.leases import Leases
from shared.jobs.ledger import Ledger
from shared.jobs.made import DamagedOutputError, Made
from shared.jobs.markers import Finished, forget_sum, maker_of
from shared.jobs.names import Claims
from shared.jobs.plan import SEGMENT, Segment, store_plan
from shared.jobs.reader import CANCELLED, SHORT
from shared.jobs.records import LostShardsError, UnreadableRecordError, write_record
from shared.jobs.reporting import Reporter
from shared.jobs.reuse import keeping
from shared.jobs.snapshot import Snapshot, stage_of
from shared.jobs.stage import FINISH, PLAN, Context, Shard, Stage
from shared.jobs.tries import Tries
from shared.settings import Settings
from shared.storage import ObjectNotFoundError, is_fault
from shared.tracing import span

CANCEL_CHECK_SECONDS = 2.0
"""Seconds between two looks at whether a job is over, while a unit reports its progress."""

log = logging.getLogger(__name__)

Wait = Callable[[Exception, int], None]


def execute(
    ledger: Ledger,
    stage: Stage[Any],
    job: str,
    unit: str,
    *,
    leases: Leases,
    reporter: Reporter,
    config: Settings,
    wait: Wait | None = None,
) -> list[str]:
    """Run one unit, unless it is done, another worker runs it, or its job is over or deleted.

    A message is only a hint: a unit whose turn has not come is left, so that `finish` never sums
    up a job whose shards are not all settled.

    Errors go to the ledger, not to the caller. Bad input parks the unit at once; any
    other error, and a missing object, parks it after `config.max_failures` errors. Only faults
    of the world (`is_fault`) never park a unit: it is run again after `wait`.

    Args:
        ledger, stage, job, unit: the unit, and the stage that does the work.
        leases: hold the unit for this process.
        reporter: receives progress.
        config: settings of the worker.
        wait: waits for the end of a fault, given the fault and the number of waits before;
            None: raise the fault.

    Returns:
        The units to queue again: this one if it failed and may be retried, the unit whose output
        this one has found damaged, else none. `Ledger.waiting` names the units that follow.
    """
    if stage_of(job) != stage.name:
        log.warning("%s: %s is no unit of the stage %s, and is left", job, unit, stage.name)
        return []
    with leases.hold(f"{job}/{unit}") as mine:
        own = Unit(ledger, stage, job, unit, reporter, config)
        waits = 0
        while mine:
            try:
                return _run_in_turn(own)
            except HandedBackError:
                own.forget_start()
                raise
            except Exception as error:
                if wait is None or not is_fault(error):
                    raise
                wait(error, waits)
                waits += 1
    return []


def _run_in_turn(own: Unit) -> list[str]:
    """Run a unit if its turn has come, and return the units to queue again."""
    ledger, job = own.ledger, own.job
    # Check while the lease is held: a job is deleted only if it is closed and nobody holds a
    # lease, so a job that is open here cannot be deleted while this unit runs.
    number = ledger.opened(job)
    if number is None:
        return []
    if number == CANCELLED:  # the cancellation broke off between its two objects
        ledger.close(job, "cancelled", None)
        return []
    own.submission = number
    try:
        if not own.find():
            return []  # it is done, or early, or no unit of this job
    except CancelledError:
        return []
    except UnreadableRecordError:
        if ledger.opened(job) == number:  # else it is gone, because the job was submitted again
            raise
        return []
    with span(stage_of(job), own.trace, **own.about):
        log.info("%s: %s", job, own.name, extra=own.about)
        try:
            outcome = own.attempt()
        except DamagedOutputError as error:
            log.warning("%s: %s", job, error)
            own.forget_start()
            if ledger.opened(job) != number:
                return []
            for unit in error.units:
                ledger.forget(job, unit)
            if PLAN in error.units:
                ledger.forget_plan(job)
            return list(error.units)
    return [own.name] if outcome == "retry" else []


@dataclass
class Unit:
    """A unit of a job, with the ledger, the stage and the settings that it runs with.

    Attributes:
        submission: the number of the submission that the unit works for, as text.
        counted: whether this start is counted; a start that waits for a fault counts once.
        made: outputs of the earlier units that it reads.
        segment, shard: the place and the arguments of a shard.
        trace: `traceparent` of the job's submission.
        began: when this process took the unit, s.
        started, failed_before: number of this start, and whether an earlier one met an error.
    """

    ledger: Ledger
    stage: Stage[Any]
    job: str
    name: str
    reporter: Reporter
    config: Settings
    submission: str = ""
    counted: bool = False
    made: Made = field(default_factory=Made)
    segment: Segment = SHORT
    shard: Shard | None = None
    trace: str = ""
    began: float = field(default_factory=time.monotonic)
    started: int = 0
    failed_before: bool = False

    @property
    def about(self) -> dict[str, str]:
        """What logs and traces say of the unit."""
        return {"job": self.job, "unit": self.name, "tenant": self.ledger.owner or LOCAL}

    def find(self) -> bool:
        """Find the unit in its job; say whether its turn has come and it is not done."""
        ledger, job = self.ledger, self.job
        if self.name in (PLAN, FINISH):
            with suppress(UnreadableRecordError):  # which the attempt meets again, and records
                self.trace = ledger.known(job, self.submission)[0].trace
            return self.name in islice(ledger.snapshot(job).waiting()[1], 1)
        record, plan = ledger.known(job, self.submission)
        self.trace = record.trace
        if plan is None:
            return False
        try:
            self.segment, self.shard = plan.find(self.name)
        except KeyError:
            return False
        if self.segment.phase:
            before = Snapshot(ledger.store, job, plan)
            if not all(before.complete(phase) for phase in range(self.segment.phase)):
                return False
        # A parked shard may be tried again, as long as its phase has begun.
        return not ledger.store.exists(self._marker_key)

    def attempt(self) -> Literal["settled", "retry", "cancelled"]:
        """Run the unit and record the outcome; it is settled once it is done or parked.

        Raises:
            DamagedOutputError: an earlier unit must run again first; nothing is recorded.
            Exception: a fault of the world (`is_fault`); nothing is recorded.
        """
        try:
            started = time.monotonic()
            if not self.counted:
                counted = self._tries.start(self.config.max_starts)
                self.started, self.failed_before = counted.starts, bool(counted.errors)
                self.counted = True
            result = self._run()
            self.reporter.done(self.job, self.name, time.monotonic() - started, result)
        except CancelledError:
            return "cancelled"
        except DamagedOutputError:
            raise
        except LostShardsError as error:
            raise DamagedOutputError(PLAN, error.key) from error
        except Exception as error:
            if is_fault(error):
                raise
            if not self._current():  # the error is none of the job's newer submission
                return "cancelled"
            parked = self._record_failure(error)
            if not (self.reporter.tells and isinstance(error, InputError)):
                self._log_failure(error, parked)
            self.reporter.failure(self.job, self.name, str(error), parked)
            if not parked:
                return "retry"
            if self.name == FINISH:
                self.ledger.close(self.job, "failed", None)
        return "settled"

    def _log_failure(self, error: Exception, parked: bool) -> None:
        log.log(
            logging.ERROR if parked else logging.WARNING,
            "%s: %s %s at start %d: %s", self.job, self.name,
            "is given up" if parked else "failed and is tried again", self.started, error,
            exc_info=None if isinstance(error, InputError) else error,
            extra={**self.about, "start": self.started},
        )  # fmt: skip

    @property
    def _tries(self) -> Tries:
        key = self.ledger.key(self.job, f"attempts/{self.name}.json")
        return Tries(self.ledger.store, key)

    def forget_start(self) -> None:
        """Count this start no longer: that it ended so is no fault of the unit."""
        if self.counted:
            self._tries.take_back()

    def _record_failure(self, error: Exception) -> bool:
        """Record an error of the unit; return whether the unit is parked by it.

        Raises:
            DamagedOutputError: the unit would be parked because an earlier unit's output is gone.
        """
        errors = self._tries.add(error)
        # A missing object may still arrive: a store behind a cache shows new objects late.
        hopeless = isinstance(error, InputError) and not isinstance(error, ObjectNotFoundError)
        parked = hopeless or len(errors) >= self.config.max_failures
        if parked and isinstance(error, ObjectNotFoundError) and (by := self._maker(error.key)):
            raise DamagedOutputError(by, error.key) from error
        if parked:
            record = ParkedUnit(
                error=errors[-1].error,
                traceback=errors[-1].traceback,
                attempts=len(errors),
                wrong_input=isinstance(error, InputError),
            )
            key = self.ledger.key(self.job, f"failed/{self.name}.json")
            write_record(self.ledger.store, key, record)
        return parked

    def _run(self) -> dict[str, Any]:
        """Run the unit and mark it done; return the stage's summary of a shard, else nothing."""
        started, ledger, job = time.time(), self.ledger, self.job
        record, plan = ledger.known(job, self.submission)
        request = ledger.known_request(job, self.submission, self.stage.request)
        check = self._check(CANCEL_CHECK_SECONDS / 4)
        context = Context(
            ledger.store,
            threads=self.config.threads,
            device=self.config.device,
            report=self._reported(self._check(CANCEL_CHECK_SECONDS)),
            check=check,
            take_back=partial(take_back, ledger, request, job, self.name),
            tenant=ledger.owner or LOCAL,
            open_root=ledger.open_root,
        )
        own = tuple(each for name in request.products() for each in (f"{name}/", f"{name}."))
        self.made = context.store.made = Made(
            request.optional_inputs(),
            (*own, *request.scratch),
            islice(before(ledger, job, plan, self.segment.phase), 16 * SEGMENT)
            if plan and self.name != PLAN
            else (),
            record.inputs,
        )
        set_threads(self.config.threads)
        result: dict[str, Any] = {}
        if self.name == FINISH:
            self._finish(request, context)
            return result
        if self.shard is None:
            Claims(ledger.store, request, job).require()
            made = self.stage.plan(request, context)
            self._check_now()
            keep = keeping(ledger.store, job, record.earlier, request.optional_inputs())
            store_plan(ledger.store, job, made, keep)
        else:
            for each in read_by(ledger, job, plan, self.segment, self.shard) if plan else ():
                self.made.add(*each)
            result = self.stage.run(request, self.shard, context)
        marker = Marker(
            outputs=context.store.outputs,
            tags=context.store.tags,
            removed=tuple(sorted(context.store.removed)),
            result=result,
            seconds=round(time.time() - started, 3),
            host=platform.node(),
            peak_memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        )
        self._check_now()
        put_marker(ledger, job, self.submission, self._marker_key, marker)
        if self.failed_before and self.segment.name:
            forget_sum(ledger.store, job, self.segment)  # which may count it as parked
        return result

    def _finish(self, request: Request, context: Context) -> None:
        """Close the job; it fails if every last-phase shard, or any earlier shard, is parked."""
        ledger, job = self.ledger, self.job
        snapshot = ledger.snapshot(job)
        last = len(snapshot.plan.counts) - 1 if snapshot.plan else 0
        done = Finished(snapshot, lambda *each: self.made.add(*outputs_of(job, *each)))
        if snapshot.parked and not (
            snapshot.plan is not None
            and all(snapshot.complete(phase) for phase in range(last))
            and any(snapshot.count_done(segment) for segment in snapshot.plan.segments(last))
        ):
            ledger.close(job, "failed", None)
            return
        Claims(ledger.store, request, job).require()
        if len(done) <= SEGMENT:
            list(done)  # reads all markers, so that all that `finish` reads is checked
        result = self.stage.finish(request, done, context)
        state: State = "partial" if snapshot.parked else "done"
        written = context.store
        own = Marker(outputs=written.outputs, tags=written.tags, removed=tuple(written.removed))
        check_all(ledger.store, request, snapshot, done, own)
        self._check_now()
        ledger.close(
            job, state, result, outputs=own.outputs, removed=own.removed, submission=self.submission
        )

    def _maker(self, key: str) -> str | None:
        """Return the earlier unit that made an object, which is gone; None: no unit did."""
        for maker, _ in self.made.find(key):
            return maker
        return maker_of(self.ledger.snapshot(self.job), key) if self.name == FINISH else None

    def _check(self, seconds: float) -> Callable[[], None]:
        """Return a function that raises `CancelledError` once the job is over or submitted again.

        It looks at its first call, and then after `seconds` at the earliest.
        """
        checked = -math.inf

        def check() -> None:
            nonlocal checked
            if time.monotonic() - checked > seconds:
                self._check_now()
                checked = time.monotonic()

        return check

    def _check_now(self) -> None:
        if not self._current():
            raise CancelledError(self.job)

    def _current(self) -> bool:
        """Say whether the job is open as it was, and nobody did the unit during a long pause."""
        if self.ledger.opened(self.job) != self.submission:
            return False
        late = time.monotonic() - self.began > self.config.lease_seconds
        return not (late and self.ledger.store.exists(self._marker_key))

    @property
    def _marker_key(self) -> str:
        return self.ledger.key(self.job, self.segment.marker(self.name))

    def _reported(self, check: Callable[[], None]) -> Callable[[int, int, str], None]:
        """Return a function that reports progress, and raises once the job is over."""

        def report(done: int, total: int, note: str) -> None:
            self.reporter.unit(self.job, self.name, done, total, note)
            check()

        return report
