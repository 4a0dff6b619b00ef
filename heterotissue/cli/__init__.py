"""The command line `htd`. Each module holds the commands of one subject."""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["main"]

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended."""

GO_ON = "interrupted; run the same command again to continue"


def main() -> None:
    """Run the command line; Ctrl-C ends it with one line at any moment, and exit code 130."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # not so in a process that ignores it, such as nohup's
        # The imports take a second, and an interrupt inside one may surface as any other error.
        signal.signal(signal.SIGINT, _leave)
    from heterotissue.cli.app import main as run

    signal.signal(signal.SIGINT, before)
    try:
        run()
    except KeyboardInterrupt:  # outside of a command
        _leave()


def _leave(*_: object) -> None:
    """End the process at once; no command runs."""
    sys.stderr.write(f"\n{GO_ON}\n")
    sys.stderr.flush()
    os._exit(INTERRUPTED)
