"""The caller's side of the sandbox's server: it is started when it is needed, and asked."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.errors import HeteroTissueError
from shared.sandbox.messages import receive, send

START_SECONDS = 60.0


class _Server:
    """The server of this process: started when the first file is opened, and after a loss."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        """Send a message and return the answer. Raises `HeteroTissueError`."""
        with self._lock:
            for again in (True, False):
                control = self._control or self._start()
                try:
                    send(control, message, descriptors)
                    answer: dict[str, Any] = receive(control, START_SECONDS)[0]
                except (EOFError, OSError) as error:
                    self.drop()
                    if not again:
                        raise HeteroTissueError(f"the sandbox ends at once: {error}") from error
                    continue
                if "error" in answer:
                    raise HeteroTissueError(f"the sandbox does not work: {answer['error']}")
                return answer
            raise AssertionError

    def drop(self) -> None:
        """Forget the server, which ends when nobody holds the other side of its socket."""
        if self._control is not None:
            self._control.close()
        self._control = None
        if self._process is not None:
            self._process.poll()

    def _start(self) -> socket.socket:
        own, servers = socket.socketpair()
        with servers:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "shared.sandbox.server", str(servers.fileno())],
                env=_environment(),
                pass_fds=(servers.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # Ctrl-C is the caller's
            )
        try:
            receive(own, START_SECONDS)
        except (EOFError, OSError, ValueError) as error:
            own.close()
            raise HeteroTissueError(
                f"the sandbox cannot be started (exit code {self._process.poll()}): is the "
                "package installed whole?"
            ) from error
        self._control = own
        return own


def _environment() -> dict[str, str]:
    """Return what a reader needs of the environment, and nothing secret."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "PATH") if name in os.environ}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    paths = os.pathsep.join(str(Path(item).absolute()) for item in sys.path)
    return {**kept, **threads, "PYTHONPATH": paths, "LANG": "C.UTF-8"}


_servers = [_Server()]


def sandbox_server() -> _Server:
    """Return the server of this process."""
    return _servers[0]


def _forked() -> None:
    """Give a forked process a server of its own; it shares the old one's socket otherwise."""
    _servers[0].drop()
    _servers[0] = _Server()


os.register_at_fork(after_in_child=_forked)


def end_child(pid: int) -> int:
    """End a child, and return its wait status."""
    try:
        return int(sandbox_server().ask({"end": pid})["status"])
    except HeteroTissueError:
        return 0
