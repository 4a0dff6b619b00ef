"""Running one unit of a job under a lease, recording its outcome, and naming the next units."""

from __future__ import annotations

import logging
import math
import platform
import resource
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from shared.computing import set_threads
from shared.contracts.base import Request
from shared.contracts.jobs import Attempts, Marker, ParkedUnit, State, UnitError
from shared.contracts.tenants import LOCAL
from shared.errors import CancelledError, HandedBackError, InputError
from shared.jobs.leases import Leases
from shared.jobs.ledger import Ledger
from shared.jobs.names import Claims
from shared.jobs.reporting import Reporter
from shared.jobs.reuse import keep_unchanged
from shared.jobs.snapshot import JobNotFoundError, UnreadableRecordError
from shared.jobs.stage import (
    FINISH,
    PLAN,
    Context,
    DamagedOutputError,
    Plan,
    Stage,
    units_before,
)
from shared.settings import Settings
from shared.storage import ObjectNotFoundError, is_fault

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
        The units to queue now: those of the next phase if this one completed its
        phase, this unit again if it failed and may be retried, else nothing.
    """
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
    """Run a unit if its turn has come, and return the units to queue now."""
    ledger, job, unit = own.ledger, own.job, own.name
    # Check while the lease is held: a job is deleted only if it is closed and nobody holds a
    # lease, so a job that is open here cannot be deleted while this unit runs.
    if not ledger.is_open(job):
        return []
    if ledger.cancelled(job):  # the cancellation broke off between its two objects
        ledger.close(job, "cancelled", None)
        return []
    before = ledger.snapshot(job)
    if unit not in before.done:
        if not before.may_run(unit):
            return []  # the message is early, or names no unit of this job
        try:
            own.submission = before.record.submission
        except JobNotFoundError:
            return []  # the job is being deleted
        try:
            outcome = own.attempt()
        except DamagedOutputError as error:
            log.warning("%s: %s", job, error)
            ledger.store.delete(ledger.key(job, f"done/{error.unit}.json"))
            return [error.unit]
        if outcome != "settled":
            return [unit] if outcome == "retry" else []
    return ledger.snapshot(job).following(unit)


@dataclass
class Unit:
    """A unit of a job, with the ledger, the stage and the settings that it runs with.

    Attributes:
        submission: the submission of the job that the unit works for.
        counted: whether this start is counted; a start that waits for a fault counts once.
        made: key → unit and SHA-256 of the outputs of earlier units that it reads.
    """

    ledger: Ledger
    stage: Stage[Any]
    job: str
    name: str
    reporter: Reporter
    config: Settings
    submission: int = 0
    counted: bool = False
    made: dict[str, tuple[str, str]] = field(default_factory=dict)

    def attempt(self) -> Literal["settled", "retry", "cancelled"]:
        """Run the unit and record the outcome; it is settled once it is done or parked.

        Raises:
            DamagedOutputError: an earlier unit must run again first; nothing is recorded.
            Exception: a fault of the world (`is_fault`); nothing is recorded.
        """
        try:
            started = time.monotonic()
            if not self.counted:
                self._count_start()
                self.counted = True
            result = self._run()
            self.reporter.done(self.job, self.name, time.monotonic() - started, result)
        except CancelledError:
            return "cancelled"
        except DamagedOutputError:
            raise
        except Exception as error:
            if is_fault(error):
                raise
            if not self._current():  # the error is none of the job's newer submission
                return "cancelled"
            parked = self._record_failure(error)
            self.reporter.failure(self.job, self.name, str(error), parked)
            if not parked:
                return "retry"
            if self.name == FINISH:
                self.ledger.close(self.job, "failed", None)
        return "settled"

    def _key(self, folder: str) -> str:
        return self.ledger.key(self.job, f"{folder}/{self.name}.json")

    def _attempts(self) -> Attempts:
        try:
            return self.ledger.store.get_model(self._key("attempts"), Attempts)
        except (ObjectNotFoundError, ValidationError):  # an unreadable count must not stop work
            return Attempts()

    def _count_start(self) -> None:
        attempts = self._attempts()
        if attempts.starts >= self.config.max_starts:
            raise InputError(
                f"started {attempts.starts} times without an end or an error: its worker was "
                "killed each time (out of memory?); give it more memory or smaller shards"
            )
        counted = Attempts(starts=attempts.starts + 1, errors=attempts.errors)
        self.ledger.store.put_json(self._key("attempts"), counted)

    def forget_start(self) -> None:
        """Count this start no longer: the worker was told to end, which is no fault of the unit."""
        if not self.counted:
            return
        with suppress(Exception):  # the store may be away
            attempts = self._attempts()
            fewer = attempts.model_copy(update={"starts": max(0, attempts.starts - 1)})
            self.ledger.store.put_json(self._key("attempts"), fewer)

    def _record_failure(self, error: Exception) -> bool:
        """Record an error of the unit; return whether the unit is parked by it.

        Raises:
            DamagedOutputError: the unit would be parked because an earlier unit's output is gone.
        """
        attempts, store = self._attempts(), self.ledger.store
        text = str(error) or type(error).__name__
        trace = "".join(traceback.format_exception(error))
        errors = (
            *attempts.errors,
            UnitError(error=text, traceback=trace, host=platform.node()),
        )
        store.put_json(self._key("attempts"), Attempts(starts=attempts.starts, errors=errors))
        # A missing object may still arrive: a store behind a cache shows new objects late.
        hopeless = isinstance(error, InputError) and not isinstance(error, ObjectNotFoundError)
        parked = hopeless or len(errors) >= self.config.max_failures
        if parked and isinstance(error, ObjectNotFoundError) and error.key in self.made:
            raise DamagedOutputError(self.made[error.key][0], error.key) from error
        if parked:
            record = ParkedUnit(
                error=text,
                traceback=trace,
                attempts=len(errors),
                wrong_input=isinstance(error, InputError),
            )
            store.put_json(self._key("failed"), record)
        return parked

    def _run(self) -> dict[str, Any]:
        """Run the unit and mark it done; return the stage's summary of a shard, else nothing."""
        started, ledger = time.time(), self.ledger
        record = ledger.snapshot(self.job).record
        self._check_now()
        request = self.stage.request.model_validate(record.request)
        context = Context(
            ledger.store,
            threads=self.config.threads,
            device=self.config.device,
            report=self._reported(self._check(CANCEL_CHECK_SECONDS)),
            check=self._check(CANCEL_CHECK_SECONDS / 4),
            tenant=ledger.owner or LOCAL,
            open_root=ledger.open_root,
        )
        set_threads(self.config.threads)
        result: dict[str, Any] = {}
        if self.name == FINISH:
            self._finish(request, context)
            return result
        if self.name == PLAN:
            self._check_names(request)
            plan = self.stage.plan(request, context)
            plan = keep_unchanged(ledger.store, self.job, record.earlier, plan)
            ledger.store.put_json(ledger.key(self.job, "plan.json"), plan)
        else:
            planned = ledger.plan(self.job) or Plan(phases=())
            shard = planned.shard(self.name)
            self.made = context.store.made = self._made(request, units_before(planned, shard))
            result = self.stage.run(request, shard, context)
        marker = Marker(
            outputs=context.store.outputs,
            removed=tuple(sorted(context.store.removed)),
            result=result,
            seconds=round(time.time() - started, 3),
            host=platform.node(),
            peak_memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        )
        self._check_now()
        ledger.store.put_json(self._key("done"), marker)
        return result

    def _finish(self, request: Request, context: Context) -> None:
        """Close the job; it fails if every last-phase shard, or any earlier shard, is parked."""
        ledger, job = self.ledger, self.job
        snapshot = ledger.snapshot(job)
        plan = snapshot.plan or Plan(phases=())
        parked, done = snapshot.parked, snapshot.done
        last = {shard.id for shard in plan.phases[-1]} if plan.phases else set()
        if parked and (parked - last or not done & last):
            ledger.close(job, "failed", None)
            return
        self._check_names(request)
        finished = [shard.id for shard in plan.shards if shard.id in done]
        results = {shard: self._marker(shard).result for shard in finished}
        self.made = context.store.made = self._made(request, finished)
        result = self.stage.finish(request, results, context)
        state: State = "partial" if parked else "done"
        written = context.store
        self._check_now()
        ledger.close(job, state, result, outputs=written.outputs, removed=written.removed)

    def _marker(self, unit: str) -> Marker:
        """Read the marker of an earlier unit. Raises `DamagedOutputError`."""
        try:
            return self.ledger.marker(self.job, unit)
        except UnreadableRecordError as error:
            raise DamagedOutputError(unit, f"its marker in job {self.job}") from error

    def _made(self, request: Request, units: Iterable[str]) -> dict[str, tuple[str, str]]:
        """Map the outputs of units to unit and SHA-256, without what people may change."""
        made: dict[str, tuple[str, str]] = {}
        for unit in units:
            outputs = self._marker(unit).outputs
            made |= {key: (unit, digest) for key, digest in outputs.items()}
        return {key: made[key] for key in made.keys() - set(request.optional_inputs())}

    def _check_names(self, request: Request) -> None:
        """Raise `InputError` if another job has taken the names of this job's result."""
        if not Claims(self.ledger.store, request, self.job).owned():
            raise InputError(
                f"another request has taken {', '.join(request.products())}: choose another "
                "name, or submit this request again with --replace"
            )

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
        """Say whether the job is still open, and was not submitted again."""
        ledger = self.ledger
        try:
            same = ledger.snapshot(self.job).record.submission == self.submission
        except JobNotFoundError:
            return False
        return same and not ledger.cancelled(self.job) and ledger.is_open(self.job)

    def _reported(self, check: Callable[[], None]) -> Callable[[int, int, str], None]:
        """Return a function that reports progress, and raises once the job is over."""

        def report(done: int, total: int, note: str) -> None:
            self.reporter.unit(self.job, self.name, done, total, note)
            check()

        return report
