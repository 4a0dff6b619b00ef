"""The health probe of a container: `python -m shared.queue.health [URL]`.

Workers and the reconciler listen on no port. They touch a file from the loop that talks
to Redis, and the probe checks the age of the file. With a URL, the probe asks the server
there. The probe runs every few seconds, so it imports only the standard library.
"""

from __future__ import annotations

import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

BEAT = Path(tempfile.gettempdir()) / "htd-alive"
MAX_BEAT_AGE_SECONDS = 90.0
ANSWER_SECONDS = 5.0


def beat() -> None:
    """Record that the process is alive; call it once per round of the process's loop."""
    BEAT.touch()


def trouble_with_beat() -> str | None:
    """Return the fault of this container's process, or None if it works."""
    try:
        age = time.time() - BEAT.stat().st_mtime
    except FileNotFoundError:
        return f"{BEAT} is missing: the process has not reached Redis yet"
    if age > MAX_BEAT_AGE_SECONDS:
        return f"the last sign of life is {age:.0f} s old: the process hangs, or Redis is away"
    return None


def trouble_with_server(url: str) -> str | None:
    """Return the fault of the server at an http(s) `url`, or None if it answers."""
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_SECONDS):  # noqa: S310 - our own address
            return None
    except (urllib.error.URLError, OSError) as error:
        return f"{url}: {error}"


def main() -> None:
    trouble = trouble_with_server(sys.argv[1]) if len(sys.argv) > 1 else trouble_with_beat()
    if trouble is not None:
        sys.exit(trouble)


if __name__ == "__main__":
    main()
