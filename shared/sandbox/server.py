"""The sandbox's server, `python -m shared.sandbox.server FD`: it forks a child for each file.

It has one thread and opens no file itself, so forking is safe and a child inherits nothing of
other files. Over the socket FD it takes two messages:

    {"opener", "modules", "path", "size", "arguments", "files", "folders", "memory", "cpu_seconds"}
        with the child's socket and its shared memory → {"pid"}. With a size, the child asks its
        caller for bytes of the file: {"need": [start, length]} → {"got": length}, in the shared
        memory
    {"end": pid} → {"status"}: the child was killed, unless it had ended; its wait status
Children end by themselves when their sockets are closed.
"""

from __future__ import annotations

import importlib
import mmap
import os
import select
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from shared.computing import machine_memory, prepare
from shared.errors import InputError
from shared.sandbox.confine import confine
from shared.sandbox.messages import receive, send
from shared.sandbox.ranges import RangeFile

LOOK_SECONDS = 0.25
"""Seconds between two looks at the memory of all children."""


def main() -> None:
    """Serve until the other side of the socket is closed."""
    prepare(1)
    control = socket.socket(fileno=int(sys.argv[1]))
    children, most = _Children(), machine_memory() // 2
    send(control, {"ready": os.getpid()})
    while True:
        children.reap()
        children.bound(most)
        if not select.select([control], [], [], LOOK_SECONDS if children.live else None)[0]:
            continue
        try:
            message, descriptors = receive(control, descriptors=2)
        except (EOFError, OSError):
            return
        if "end" in message:
            send(control, {"status": children.end(message["end"])})
            continue
        try:
            opener = _find(message["opener"])
            for module in message["modules"]:
                importlib.import_module(module)
            child = os.fork()
        except Exception:
            send(control, {"error": traceback.format_exc()})
        else:
            if not child:
                control.close()
                _run(opener, message, *descriptors)
            children.live.add(child)
            send(control, {"pid": child})
        for descriptor in descriptors:
            os.close(descriptor)


class _Children:
    """The children that live, and the wait statuses of those that a signal ended."""

    def __init__(self) -> None:
        self.live: set[int] = set()
        self.killed: dict[int, int] = {}

    def reap(self) -> None:
        for child in list(self.live):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                self.live.discard(child)
                if os.WIFSIGNALED(status):
                    self.killed[child] = status

    def bound(self, most: int) -> None:
        """Kill the largest child if all together take more than `most` bytes of memory."""
        if len(self.live) > 1:
            own = _resident(os.getpid())  # they share it
            sizes = {child: max(0, _resident(child) - own) for child in self.live}
            if sum(sizes.values()) > most:
                os.kill(max(sizes, key=sizes.__getitem__), signal.SIGKILL)

    def end(self, child: int) -> int:
        """End a child; return its wait status, or 0 if it ended by itself."""
        for tries in range(1000):
            if child not in self.live:
                break
            if tries == 20:  # before that it may end by itself, by a signal that says why
                os.kill(child, signal.SIGKILL)
            time.sleep(0.001)
            self.reap()
        return self.killed.pop(child, 0)


def _resident(process: int) -> int:
    """Return the bytes that a process has in memory; 0 if it has ended, or /proc is not there."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * mmap.PAGESIZE
    except (OSError, IndexError):
        return 0


def _find(name: str) -> Any:
    """Import a class that is named 'module:class'; later children inherit the module."""
    module, _, item = name.partition(":")
    return getattr(importlib.import_module(module), item)


def _run(opener: Any, message: Any, connection: int, memory: int) -> None:
    """Be a child: open the file and answer requests, until the caller closes the socket."""
    try:
        with socket.socket(fileno=connection) as caller, mmap.mmap(memory, 0) as shared:
            _answer(opener, message, caller, memoryview(shared))
    except (EOFError, OSError):
        os._exit(0)
    finally:
        os._exit(1)


def _answer(opener: Any, message: Any, caller: socket.socket, shared: memoryview) -> None:
    files, folders = ([Path(name) for name in message[key]] for key in ("files", "folders"))
    seconds = message["cpu_seconds"]
    signal.setitimer(signal.ITIMER_PROF, seconds)  # it ends the process, C code too
    try:
        confine(files, folders, message["memory"])
        if message["size"] is None:
            file: Any = Path(message["path"])
        else:
            file = RangeFile(lambda *place: _range(caller, shared, *place), message["size"])
        reader = opener(file, *message["arguments"])
    except Exception as error:
        send(caller, _told(error))
        return
    send(caller, {"facts": reader.facts})
    while True:
        place, _ = receive(caller)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            if isinstance(place, dict):
                answer: dict[str, Any] = {"filled": reader.fill(shared, *place["fill"])}
            elif isinstance(found := reader.read(*place), dict):
                answer = {"facts": found}
            else:
                data = memoryview(found).cast("B")
                shared[: len(data)] = data
                answer = {"bytes": len(data)}
        except Exception as error:
            answer = _told(error)
        send(caller, answer)


def _range(caller: socket.socket, shared: memoryview, start: int, length: int) -> bytes:
    """Ask the caller for bytes of the file."""
    send(caller, {"need": [start, length]})
    answer, _ = receive(caller)
    return bytes(shared[: int(answer["got"])])


def _told(error: Exception) -> dict[str, str]:
    kind = "input" if isinstance(error, InputError) else type(error).__name__
    return {"error": kind, "text": str(error)[:2000] or type(error).__name__}


if __name__ == "__main__":
    main()
