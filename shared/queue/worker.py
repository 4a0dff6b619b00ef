"""Celery workers of the stages, and the dispatcher of units; no other module uses Celery.

A Celery message is `(job, unit)` and nothing else. If it is lost with its worker or with
Redis, the reconciler sends it again, because the store lists the open jobs.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import signal
import time
from typing import Any

from billiard.common import TERM_SIGNAL
from celery import Celery
from celery.signals import heartbeat_sent, worker_process_init
from kombu.exceptions import OperationalError
from redis import Redis
from redis.client import NEVER_DECODE
from redis.exceptions import RedisError

from shared.computing import prepare
from shared.errors import HandedBackError, HeteroTissueError, InputError
from shared.jobs import Ledger, Reporter, Stage, execute, stage_of
from shared.logging import configure_logging
from shared.queue import health
from shared.queue.redis_state import RedisLeases, RedisReporter, connect
from shared.queue.tenants import ledger_of
from shared.queue.transport import split_tls
from shared.settings import Settings, settings
from shared.storage import is_fault

TASK = "htd.run"

LONGEST_WAIT_SECONDS = 30.0

log = logging.getLogger(__name__)


def make_app(config: Settings, queue: str = "htd") -> Celery:
    """Make the Celery app of the workers of `queue`.

    Raises:
        InputError: no broker is configured, or its address is not valid.
    """
    url = config.broker_url.get_secret_value()
    if not url:
        raise InputError(
            "no broker: set HTD_BROKER_URL=redis://host:port/0, or start 'htd stack up'"
        )
    try:
        plain, tls = split_tls(url)
    except ValueError as error:
        raise InputError(f"the broker's address is not valid: {error}") from error
    app = Celery("heterotissue", broker=plain)
    if tls is not None:
        app.conf.broker_use_ssl = tls
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_soft_shutdown_timeout=config.stop_seconds,
        worker_max_tasks_per_child=config.units_per_process or None,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        visibility_timeout=config.visibility_timeout,
        broker_transport_options={
            "visibility_timeout": config.visibility_timeout,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "socket_keepalive": True,
            "socket_connect_timeout": 10,
            "health_check_interval": 25,
            "unacked_key": f"unacked.{queue}",
            "unacked_index_key": f"unacked_index.{queue}",
            "unacked_mutex_key": f"unacked_mutex.{queue}",
        },
    )
    if plain.startswith("redis://"):
        app.conf.broker_transport = "shared.queue.transport:Transport"
    return app


class QueueError(HeteroTissueError):
    """The queue cannot be reached; the reconciler queues the units once it is back."""


class Dispatcher:
    """Queues units of jobs.

    Attributes:
        left_out: jobs that met an error when they were reconciled; each is logged once.
    """

    def __init__(self, config: Settings) -> None:
        self.config = config
        self.app = make_app(config)
        self.redis = connect(config.broker_url.get_secret_value())
        self.left_out: set[str] = set()

    def send(self, stage: str, job: str, units: list[str]) -> None:
        """Queue units for the workers of `stage`. Raises `QueueError`."""
        try:
            for unit in units:
                self.app.send_task(TASK, args=[job, unit], queue=stage)
        except (OperationalError, RedisError) as error:  # RedisError: its memory or disk is full
            raise QueueError(f"{job} is recorded, but the queue takes nothing: {error}") from error

    def listens(self, stage: str) -> bool:
        """Say whether a worker takes the units of `stage` from the queue; it takes a second."""
        try:
            workers = self.app.control.inspect(timeout=1.0).active_queues() or {}
        except (OperationalError, RedisError):
            return False
        return any(queue["name"] == stage for queues in workers.values() for queue in queues)

    def start(self, ledger: Ledger, job: str) -> None:
        """Queue the runnable units of a job that was just submitted."""
        self.send(ledger.stage(job), job, ledger.runnable(job)[1])

    def reconcile(self, ledger: Ledger) -> int:
        """Queue lost units again: runnable units without a lease that are in no queue.

        A job with a record that cannot be read is left out, and so is one that meets any other
        error: the others go on.

        Returns:
            The number of units that were queued.

        Raises:
            QueueError, RedisError: the queue cannot be reached.
            Exception: a fault of the world (`is_fault`), which all jobs meet.
        """
        sent, waiting = 0, Waiting(self.redis)
        for job in ledger.open_jobs():
            try:
                sent += self._reconcile_job(ledger, job, waiting)
            except (QueueError, RedisError):
                raise
            except Exception as error:
                if is_fault(error):
                    raise
                if job not in self.left_out:
                    log.exception("job %s is left out, the others go on", job)
                self.left_out.add(job)
        return sent

    def _reconcile_job(self, ledger: Ledger, job: str, waiting: Waiting) -> int:
        if ledger.forget_closed(job):
            return 0
        if ledger.cancelled(job):  # the cancellation broke off between its two objects
            ledger.close(job, "cancelled", None)
            return 0
        stage = stage_of(job)
        queued = waiting.of(stage)
        leases = RedisLeases(self.redis, self.config.lease_seconds)
        lost = [
            unit
            for unit in ledger.runnable(job)[1]
            if (job, unit) not in queued and not leases.alive(f"{job}/{unit}")
        ]
        self.send(stage, job, lost)
        return len(lost)


class Waiting:
    """The units that wait in the queues, read once per queue."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self._units: dict[str, set[tuple[str, str]]] = {}

    def of(self, stage: str) -> set[tuple[str, str]]:
        """Return the (job, unit) pairs that wait in the queue of a stage. Raises `RedisError`."""
        if stage not in self._units:
            # As bytes, because a message from elsewhere need not be text.
            messages = self.redis.execute_command("LRANGE", stage, 0, -1, **{NEVER_DECODE: True})  # type: ignore[no-untyped-call]
            self._units[stage] = {unit for each in messages if (unit := _unit_of(each))}
        return self._units[stage]


def _unit_of(message: bytes) -> tuple[str, str] | None:
    """Return the (job, unit) of a message in the form of kombu; None: it is something else."""
    try:
        (job, unit), _, _ = json.loads(base64.b64decode(json.loads(message)["body"]))
    except (ValueError, KeyError, TypeError):
        return None
    return str(job), str(unit)


def worker_app(stage: Stage[Any], config: Settings) -> Celery:
    """Make the Celery app that runs the units of `stage`."""
    app = make_app(config, stage.name)

    @app.task(name=TASK)  # type: ignore[untyped-decorator]
    def run(job: str, unit: str) -> None:
        _hand_back_when_told_to_end()
        ledger = ledger_of(config, job)
        redis = connect(config.broker_url.get_secret_value())
        log.info("%s: %s", job, unit)
        following = execute(
            ledger,
            stage,
            job,
            unit,
            leases=RedisLeases(redis, config.lease_seconds),
            reporter=RedisReporter(redis),
            config=config,
            wait=lambda error, waits: wait_for_world(RedisReporter(redis), job, unit, error, waits),
        )
        for name in following:
            app.send_task(TASK, args=[job, name], queue=stage.name)

    return app


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


def _hand_back_when_told_to_end() -> None:
    """Make this pool child end its unit in order when its worker is told to end.

    Celery ends children by SIGTERM, or by what REMAP_SIGTERM says, and sends it twice. Its pool
    sets handlers of its own when a child starts, so this is called when a unit starts.
    """
    numbers = {signal.SIGTERM, TERM_SIGNAL}

    def hand_back(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise HandedBackError

    for number in numbers:
        signal.signal(number, hand_back)


def serve(stage: Stage[Any]) -> None:
    """Work on the queue of `stage` until the process is told to stop."""
    config = settings()
    configure_logging(config.log_level)
    worker_process_init.connect(lambda **_: prepare(config.threads), weak=False)
    heartbeat_sent.connect(lambda **_: health.beat(), weak=False)
    worker_app(stage, config).worker_main(
        [
            "worker",
            "--queues", stage.name,
            "--concurrency", "1",
            "--pool", "prefork",
            "--hostname", f"{stage.name}-{os.getpid()}@%h",
            "--without-gossip",
            "--without-mingle",
            "--loglevel", config.log_level,
        ]
    )  # fmt: skip
