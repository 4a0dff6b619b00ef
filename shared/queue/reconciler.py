"""The reconciler as a process: `python -m shared.queue.reconciler`."""

from __future__ import annotations

import signal
import threading

from shared.logging import configure_logging
from shared.queue.worker import reconcile_forever
from shared.settings import settings


def main() -> None:
    config = settings()
    configure_logging(config.log_level)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    reconcile_forever(config, stop)


if __name__ == "__main__":
    main()
