"""Running one unit of a job: claim, do, mark, and say what may run next."""

from __future__ import annotations

import platform
import resource
import time
import traceback
from collections.abc import Callable
from typing import Any

from shared.contracts.base import Request
from shared.device import choose_device
from shared.errors import CancelledError, InputError
from shared.jobs.leases import Leases
from shared.jobs.ledger import Ledger
from shared.jobs.reporting import Reporter
from shared.jobs.stage import FINISH, PLAN, Context, Plan, Stage
from shared.settings import Settings
from shared.storage import ObjectNotFoundError

CANCEL_CHECK_SECONDS = 2.0


def execute(
    ledger: Ledger,
    stage: Stage[Any],
    job: str,
    unit: str,
    *,
    leases: Leases,
    reporter: Reporter,
    config: Settings,
) -> list[str]:
    """Run one unit, unless it is done, somebody else runs it, or its job is over or deleted.

    Errors end in the ledger, not in the caller: bad input parks the unit at once, any
    other error, and an object that is missing, after `config.max_failures`.

    Returns:
        The units to queue now: those of the next phase if this one completed its
        phase, this unit again if it failed and may be retried, else nothing.
    """
    with leases.hold(f"{job}/{unit}") as mine:
        # Asked under the lease: who deletes a job looks for leases once it is no longer open.
        if not mine or not ledger.is_open(job):
            return []
        if ledger.is_done(job, unit):
            return _following(ledger, job, unit)
        try:
            started = time.monotonic()
            _count_start(ledger, job, unit, config)
            result = _run(ledger, stage, job, unit, reporter, config)
            reporter.done(job, unit, time.monotonic() - started, result)
        except CancelledError:
            return []
        except Exception as error:
            parked = _record_failure(ledger, job, unit, error, config)
            reporter.failure(job, unit, str(error), parked)
            if not parked:
                return [unit]
            if unit == FINISH:
                ledger.close(job, "failed", None)
    return _following(ledger, job, unit)


def _following(ledger: Ledger, job: str, unit: str) -> list[str]:
    """Units of the phase after the one that `unit` belongs to, once that one is settled."""
    _, waiting = ledger.runnable(job)
    if not waiting or unit == FINISH:
        return []
    plan = ledger.plan(job)
    if plan is not None and unit != PLAN:
        own = next(phase for phase in plan.phases if any(shard.id == unit for shard in phase))
        if any(shard.id == waiting[0] for shard in own):
            return []
    return waiting


def _count_start(ledger: Ledger, job: str, unit: str, config: Settings) -> None:
    attempts = _attempts(ledger, job, unit)
    if attempts["starts"] >= config.max_starts:
        raise InputError(
            f"started {attempts['starts']} times without an end or an error: its worker was killed "
            "each time (out of memory?); give it more memory or smaller shards"
        )
    attempts["starts"] += 1
    ledger.store.put_json(ledger.key(job, f"attempts/{unit}.json"), attempts)


def _attempts(ledger: Ledger, job: str, unit: str) -> dict[str, Any]:
    key = ledger.key(job, f"attempts/{unit}.json")
    attempts: dict[str, Any] = (
        ledger.store.get_json(key) if ledger.store.exists(key) else {"starts": 0, "errors": []}
    )
    return attempts


def _record_failure(
    ledger: Ledger, job: str, unit: str, error: Exception, config: Settings
) -> bool:
    attempts = _attempts(ledger, job, unit)
    text = str(error) or type(error).__name__
    trace = "".join(traceback.format_exception(error))
    attempts["errors"].append({"error": text, "traceback": trace, "host": platform.node()})
    ledger.store.put_json(ledger.key(job, f"attempts/{unit}.json"), attempts)
    # What is missing may be on its way: a store behind a cache shows an object a little later.
    hopeless = isinstance(error, InputError) and not isinstance(error, ObjectNotFoundError)
    parked = hopeless or len(attempts["errors"]) >= config.max_failures
    if parked:
        record = {"error": text, "traceback": trace, "attempts": len(attempts["errors"])}
        ledger.store.put_json(ledger.key(job, f"failed/{unit}.json"), record)
    return parked


def _run(
    ledger: Ledger, stage: Stage[Any], job: str, unit: str, reporter: Reporter, config: Settings
) -> dict[str, Any]:
    """Do a unit and mark it done; return what the stage made of a shard, else nothing."""
    started = time.time()
    request = stage.request.model_validate(ledger.request(job))
    context = Context(
        ledger.store,
        threads=config.threads,
        device=choose_device(config),
        report=_report(ledger, job, unit, reporter),
    )
    result: dict[str, Any] = {}
    if unit == FINISH:
        _finish(ledger, stage, job, request, _planned(ledger, job), context)
        return result
    if unit == PLAN:
        ledger.store.put_json(ledger.key(job, "plan.json"), stage.plan(request, context))
    else:
        phases = _planned(ledger, job).phases
        shard = next(shard for phase in phases for shard in phase if shard.id == unit)
        result = stage.run(request, shard, context)
    marker = {
        "outputs": context.store.outputs,
        "result": result,
        "seconds": round(time.time() - started, 3),
        "host": platform.node(),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    ledger.store.put_json(ledger.key(job, f"done/{unit}.json"), marker)
    return result


def _planned(ledger: Ledger, job: str) -> Plan:
    return ledger.plan(job) or Plan(phases=())


def _finish(
    ledger: Ledger, stage: Stage[Any], job: str, request: Request, plan: Plan, context: Context
) -> None:
    shards = [shard.id for phase in plan.phases for shard in phase]
    done = ledger.done(job)
    parked = ledger.parked(job)
    last = {shard.id for shard in plan.phases[-1]} if plan.phases else set()
    if parked and (parked - last or not done & last):
        ledger.close(job, "failed", None)
        return
    results = {shard: ledger.marker(job, shard)["result"] for shard in shards if shard in done}
    result = stage.finish(request, results, context)
    ledger.close(job, "partial" if parked else "done", result)


def _report(
    ledger: Ledger, job: str, unit: str, reporter: Reporter
) -> Callable[[int, int, str], None]:
    checked = time.monotonic()

    def report(done: int, total: int, note: str) -> None:
        nonlocal checked
        reporter.unit(job, unit, done, total, note)
        if time.monotonic() - checked > CANCEL_CHECK_SECONDS:
            checked = time.monotonic()
            if ledger.cancelled(job):
                raise CancelledError(job)

    return report
