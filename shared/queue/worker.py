"""Celery workers of the stages, and the dispatcher of units; no other module uses Celery.

A Celery message is `(job, unit)` and nothing else. If it is lost with its worker or with
Redis, the reconciler sends it again, because the store lists the open jobs.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

from billiard.common import TERM_SIGNAL
from celery import Celery
from celery.signals import (
    heartbeat_sent,
    worker_before_create_process,
    worker_process_init,
)
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from shared.computing import prepare
from shared.contracts.tenants import LOCAL
from shared.errors import HandedBackError, HeteroTissueError, InputError
from shared.jobs import Ledger, Stage, execute, stage_of, wait_for_world
from shared.logging import configure_logging
from shared.queue import health
from shared.queue.redis_state import (
    RedisLeases,
    RedisReporter,
    connect,
    first_queue,
    running_key,
)
from shared.queue.tenants import tenant_ledger, tenant_of
from shared.queue.transport import split_tls
from shared.queue.window import Ledgers, Waiting, Window
from shared.settings import Settings, settings
from shared.storage import is_fault
from shared.tracing import configure_tracing

TASK = "htd.run"

TENANTS = 256
"""Number of tenants whose ledgers a worker keeps open."""

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
            "queue_order_strategy": "priority",  # in the order in which a worker names them
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
    """Queues units of jobs."""

    def __init__(self, config: Settings) -> None:
        self.config = config
        self.app = make_app(config)
        self.redis = connect(config.broker_url.get_secret_value())
        leases = RedisLeases(self.redis, config.lease_seconds)
        self.window = Window(self.redis, leases, partial(send_unit, self.app))
        self._ledgers = lru_cache(maxsize=TENANTS)(partial(tenant_ledger, config))

    def send(self, stage: str, job: str, units: list[str]) -> None:
        """Queue units for the workers of `stage`, whatever is in flight. Raises `QueueError`."""
        with _queue_errors(job):
            for unit in units:
                send_unit(self.app, stage, job, unit)

    def listens(self, stage: str) -> bool:
        """Say whether a worker takes the units of `stage` from the queue; it takes a second."""
        try:
            workers = self.app.control.inspect(timeout=1.0).active_queues() or {}
        except (OperationalError, RedisError):
            return False
        return any(queue["name"] == stage for queues in workers.values() for queue in queues)

    def start(self, ledger: Ledger, job: str) -> None:
        """Queue the first units of a job that was just submitted. Raises `QueueError`."""
        with _queue_errors(job):
            self.window.start(ledger, job)

    def reconcile(self, ledger: Ledger) -> int:
        """Queue what waits of the open jobs of a tenant, in turn with what waits of others.

        A unit is lost if it is in no queue and its lease has ended, and is queued again. A job
        with a record that cannot be read is left out, and so is one that meets any other error:
        the others go on.

        Returns:
            The number of units that were queued.

        Raises:
            QueueError, RedisError: the queue cannot be reached.
            Exception: a fault of the world (`is_fault`), which all jobs meet.
        """
        waiting, stages = Waiting(self.redis), set()
        for job in ledger.open_jobs():
            try:
                if self._enter(ledger, job, waiting):
                    stages.add(stage_of(job))
            except RedisError:
                raise
            except Exception as error:
                if is_fault(error):
                    raise
                self.window.leave_out(job)
        with _queue_errors(f"a job in {ledger.store.url}"):
            return sum(self.window.fill(stage, self.ledgers(ledger)) for stage in sorted(stages))

    def ledgers(self, known: Ledger) -> Ledgers:
        """Return what finds the ledger of a tenant, one of which is known."""
        owner = known.owner or LOCAL
        return lambda tenant: known if tenant == owner else self._ledgers(tenant)

    def _enter(self, ledger: Ledger, job: str, waiting: Waiting) -> bool:
        """Let an open job take its turns, without its lost units; say whether it is open."""
        if not ledger.tidy(job):
            self.window.forget(job)
            return False
        self.window.drop_lost(job, waiting)
        self.window.turns.enter(job)
        return True

    def forget_ended(self) -> None:
        """Count units no longer as running whose leases have ended. Raises `RedisError`."""
        for key in self.redis.scan_iter(running_key("*")):
            self.redis.zremrangebyscore(key, 0, time.time())


@contextmanager
def _queue_errors(job: str) -> Iterator[None]:
    try:
        yield
    except (OperationalError, RedisError) as error:  # RedisError: its memory or disk is full
        raise QueueError(f"{job} is recorded, but the queue takes nothing: {error}") from error


def send_unit(app: Celery, queue: str, job: str, unit: str) -> None:
    """Queue a unit."""
    app.send_task(TASK, args=[job, unit], queue=queue)


def worker_app(stage: Stage[Any], config: Settings) -> Celery:
    """Make the Celery app that runs the units of `stage`."""
    app = make_app(config, stage.name)

    @lru_cache(maxsize=1)  # at the first unit, because pool children do not share connections
    def connections() -> tuple[RedisReporter, Window]:
        redis = connect(config.broker_url.get_secret_value())
        leases = RedisLeases(redis, config.lease_seconds)
        return RedisReporter(redis), Window(redis, leases, partial(send_unit, app))

    ledgers = lru_cache(maxsize=TENANTS)(partial(tenant_ledger, config))

    @app.task(name=TASK)  # type: ignore[untyped-decorator]
    def run(job: str, unit: str) -> None:
        _hand_back_when_told_to_end()
        reporter, window = connections()
        ledger = ledgers(tenant_of(job))
        again = execute(
            ledger,
            stage,
            job,
            unit,
            leases=window.leases,
            reporter=reporter,
            config=config,
            wait=lambda error, waits: wait_for_world(reporter, job, unit, error, waits),
        )
        try:
            window.ended(ledgers, job, unit, again)
        except Exception as error:
            if not isinstance(error, OperationalError | RedisError) and not is_fault(error):
                raise
            log.warning("%s: the reconciler queues what follows %s: %s", job, unit, error)

    return app


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
    configure_logging(config.log_level, config.log_format)
    # A full collection in a child would copy every page that it shares with this process.
    worker_before_create_process.connect(lambda **_: gc.freeze(), weak=False)
    worker_process_init.connect(lambda **_: prepare(config.threads), weak=False)
    worker_process_init.connect(
        lambda **_: configure_tracing(config.otlp_endpoint, stage.name), weak=False
    )
    heartbeat_sent.connect(lambda **_: health.beat(), weak=False)
    worker_app(stage, config).worker_main(
        [
            "worker",
            "--queues", f"{first_queue(stage.name)},{stage.name}",
            "--concurrency", "1",
            "--pool", "prefork",
            "--hostname", f"{stage.name}-{os.getpid()}@%h",
            "--without-gossip",
            "--without-mingle",
            "--loglevel", config.log_level,
        ]
    )  # fmt: skip
