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
    # The imports take a second, and an interrupt inside one may surface as any other error.
    signal.signal(signal.SIGINT, _leave)
    from heterotissue.cli.app import main as run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _leave(number: int, frame: object) -> None:
    """End the process at once; nothing has been written yet."""
    sys.stderr.write(f"\n{GO_ON}\n")
    sys.stderr.flush()
    os._exit(INTERRUPTED)
