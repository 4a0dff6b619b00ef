"""The reconciler as a process: `python -m shared.queue.reconciler`.

It queues lost units again, and every hour it opens lost jobs again and removes old objects.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial

from shared.logging import configure_logging
from shared.queue import health
from shared.queue.sweeping import sweep
from shared.queue.tenants import tenant_ledger, tenants
from shared.queue.worker import TENANTS, Dispatcher
from shared.settings import Settings, settings
from shared.storage import open_store

SWEEP_SECONDS = 3600.0

log = logging.getLogger("shared.queue.reconciler")


def reconcile_forever(config: Settings, stop: threading.Event) -> None:
    """Reconcile every `config.reconcile_seconds` until `stop` is set; sweep every hour."""
    dispatcher = Dispatcher(config)
    ledgers = lru_cache(maxsize=TENANTS)(partial(tenant_ledger, config))
    kept, swept = timedelta(days=config.keep_images_days), time.monotonic() - SWEEP_SECONDS
    root = None
    while not stop.wait(config.reconcile_seconds):
        try:
            root = root or open_store(config=config)
            dispatcher.forget_ended()
            for tenant in tenants(root):
                if sent := dispatcher.reconcile(ledgers(tenant)):
                    log.info("queued %d units of tenant %s", sent, tenant)
            if time.monotonic() - swept >= SWEEP_SECONDS:
                swept = time.monotonic()
                for tenant in tenants(root):
                    _sweep(config, tenant, kept)
        except Exception:
            log.exception("reconciliation failed; trying again")
        health.beat()


def _sweep(config: Settings, tenant: str, kept: timedelta) -> None:
    try:
        ledger = tenant_ledger(config, tenant)
        if lost := ledger.reopen_lost():
            log.warning("opened jobs that were neither open nor over: %s", ", ".join(lost))
        removed = sweep(ledger, kept, datetime.now(UTC))
    except Exception:
        log.exception("old objects of tenant %s stay until the next hour", tenant)
    else:
        log.info("removed %d old objects of tenant %s", removed, tenant)


def main() -> None:
    """Reconcile until the process is told to stop."""
    config = settings()
    configure_logging(config.log_level, config.log_format)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    reconcile_forever(config, stop)


if __name__ == "__main__":
    main()
