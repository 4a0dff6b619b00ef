"""Celery workers of the stages, and the dispatcher of units; no other module uses Celery.

A Celery message is `(job, unit)` and nothing else. If it is lost with its worker or with
Redis, the reconciler sends it again, because the store lists the open jobs.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from celery import Celery
from celery.signals import heartbeat_sent, worker_process_init
from kombu.exceptions import OperationalError

from shared.computing import prepare
from shared.errors import HeteroTissueError, InputError
from shared.jobs import Ledger, Reporter, Stage, execute, stage_of
from shared.logging import configure_logging
from shared.queue import health
from shared.queue.redis_state import RedisLeases, RedisReporter, connect
from shared.queue.tenants import ledger_of
from shared.settings import Settings, settings

TASK = "htd.run"

LONGEST_WAIT_SECONDS = 30.0

log = logging.getLogger(__name__)


def make_app(config: Settings, queue: str = "htd") -> Celery:
    """Make the Celery app of the workers of `queue`.

    Raises:
        InputError: no broker is configured.
    """
    url = config.broker_url.get_secret_value()
    if not url:
        raise InputError(
            "no broker: set HTD_BROKER_URL=redis://host:port/0, or start 'htd stack up'"
        )
    app = Celery("heterotissue", broker=url)
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
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        visibility_timeout=config.visibility_timeout,
        broker_transport_options={
            "visibility_timeout": config.visibility_timeout,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "unacked_key": f"unacked.{queue}",
            "unacked_index_key": f"unacked_index.{queue}",
            "unacked_mutex_key": f"unacked_mutex.{queue}",
        },
    )
    return app


class QueueError(HeteroTissueError):
    """The queue cannot be reached; the reconciler queues the units once it is back."""


class Dispatcher:
    """Queues units of jobs."""

    def __init__(self, config: Settings) -> None:
        self.config = config
        self.app = make_app(config)
        self.redis = connect(config.broker_url.get_secret_value())

    def send(self, stage: str, job: str, units: list[str]) -> None:
        """Queue units for the workers of `stage`. Raises `QueueError`."""
        try:
            for unit in units:
                self.app.send_task(TASK, args=[job, unit], queue=stage)
        except OperationalError as error:
            raise QueueError(f"{job} is recorded, but the queue cannot be reached") from error

    def listens(self, stage: str) -> bool:
        """Say whether a worker takes the units of `stage` from the queue; it takes a second."""
        try:
            workers = self.app.control.inspect(timeout=1.0).active_queues() or {}
        except OperationalError:
            return False
        return any(queue["name"] == stage for queues in workers.values() for queue in queues)

    def start(self, ledger: Ledger, job: str) -> None:
        """Queue the runnable units of a job that was just submitted."""
        self.send(ledger.stage(job), job, ledger.runnable(job)[1])

    def reconcile(self, ledger: Ledger) -> int:
        """Queue lost units again: runnable units without a lease, if their stage's queue is empty.

        Returns:
            The number of units that were queued.
        """
        sent = 0
        for job in ledger.open_jobs():
            try:
                sent += self._reconcile_job(ledger, job)
            except InputError:
                log.exception("job %s is left out, the others go on", job)
        return sent

    def _reconcile_job(self, ledger: Ledger, job: str) -> int:
        if ledger.forget_closed(job):
            return 0
        stage = stage_of(job)
        if self.redis.llen(stage):
            return 0  # its units may be waiting in the queue
        leases = RedisLeases(self.redis, self.config.lease_seconds)
        lost = [u for u in ledger.runnable(job)[1] if not leases.alive(f"{job}/{u}")]
        self.send(stage, job, lost)
        return len(lost)


def worker_app(stage: Stage[Any], config: Settings) -> Celery:
    """Make the Celery app that runs the units of `stage`."""
    app = make_app(config, stage.name)

    @app.task(name=TASK)  # type: ignore[untyped-decorator]
    def run(job: str, unit: str) -> None:
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
