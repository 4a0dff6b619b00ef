"""The caller's side of the sandbox: a file that another process reads."""

from __future__ import annotations

import math
import mmap
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.computing import machine_memory
from shared.errors import InputError
from shared.sandbox.client import end_child, sandbox_server
from shared.sandbox.messages import receive, send

ANSWER_BYTES = 32 << 20
"""Largest array that is read at once."""

SECONDS = 120.0
"""Longest time that opening a file, or reading a part of it, may take."""

MAX_MEMORY = 6 << 30
"""Bytes that reading a file may take, but at most half of the machine's."""

MAX_RANGES = 2000
"""Pieces of its file that a process may ask for while it opens it or reads a part."""


class Ranges(NamedTuple):
    """A file on a server: its size in bytes, and what returns `length` bytes from `start` on."""

    size: int
    fetch: Callable[[int, int], bytes]


class ReadError(InputError):
    """A part of a file cannot be read; others may be readable."""


class SandboxedFile:
    """A file that is open in a process of its own. Threads may share it; they read in turn.

    Attributes:
        path: the file.
        facts: what the reader says about the file, JSON. The reader may be in the hands of the
            file's author: check the facts.
        failed: whether the process was lost, so that nothing more can be read.
        pid: number of the process.
    """

    def __init__(
        self,
        path: Path,
        connection: socket.socket,
        memory: mmap.mmap,
        pid: int,
        seconds: float | None = None,
        ranges: Ranges | None = None,
    ) -> None:
        self.path = path
        self._ranges = ranges
        self.failed = False
        self._seconds = seconds or SECONDS
        self._connection, self.pid = connection, pid
        self._memory = memory
        self._lock = threading.Lock()
        weakref.finalize(self, connection.close)  # the process ends with its connection
        try:
            self.facts: dict[str, Any] = self._facts(self._receive())
        except ReadError as error:
            self.close()
            raise InputError(str(error)) from error
        except InputError:
            self.close()
            raise

    def read(self, place: Sequence[Any], shape: Sequence[int], dtype: Any) -> NDArray[Any]:
        """Read a part of the file.

        Args:
            place: what the reader's `read` takes, JSON.
            shape: shape of the array that it returns, at most `ANSWER_BYTES`.
            dtype: its dtype.

        Raises:
            ReadError: the part cannot be read.
            InputError: the process was lost, now or before; or the reader refuses.
        """
        if math.prod(shape) * np.dtype(dtype).itemsize > len(self._memory):
            raise InputError(
                f"{self.path.name} states more than a part of it may hold: is it damaged?"
            )
        out = np.empty(shape, dtype)
        with self._lock:
            if self._answered(place).get("bytes") != out.nbytes:
                raise self._lost("it gave other data than it should")
            out.reshape(-1).view(np.uint8)[:] = np.frombuffer(self._memory, np.uint8, out.nbytes)
        return out

    def fill(self, place: Sequence[Any]) -> Any:
        """Let the reader write into the shared memory, of which `memory` is a view.

        Args:
            place: what the reader's `fill` takes after the memory, JSON; it says where to write.

        Returns:
            What the reader says about it, JSON: check it.

        Raises:
            ReadError, InputError: as `read`.
        """
        with self._lock:
            return self._answered({"fill": place}).get("filled")

    def memory(self, at: int, shape: Sequence[int]) -> NDArray[np.uint8]:
        """Return a view of the shared memory, uint8, from byte `at` on; the reader changes it."""
        return np.frombuffer(self._memory, np.uint8, math.prod(shape), at).reshape(shape)

    def ask(self, place: Sequence[Any]) -> dict[str, Any]:
        """Return facts from the reader's `read`, as a JSON object; see `read`."""
        with self._lock:
            return self._facts(self._answered(place))

    def _facts(self, answer: dict[str, Any]) -> dict[str, Any]:
        facts = answer.get("facts")
        if not isinstance(facts, dict):
            raise self._lost("it gave other data than it should")
        return facts

    def _answered(self, question: Any) -> dict[str, Any]:
        if self.failed:
            raise InputError(f"{self.path.name} can no longer be read: open it again")
        try:
            send(self._connection, question)
        except OSError:
            raise self._lost("the process that reads it has ended") from None
        return self._receive()

    def close(self) -> None:
        """End the process."""
        self.failed = True
        self._connection.close()

    def __enter__(self) -> SandboxedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + self._seconds
        answer = self._answer(end)
        for _ in range(MAX_RANGES):
            if self._ranges is None or "need" not in answer:
                return answer
            self._give(self._ranges, answer["need"])
            answer = self._answer(end)
        raise self._lost("it is read in too many pieces")

    def _give(self, ranges: Ranges, need: Any) -> None:
        """Give the process bytes of its file."""
        try:
            start, length = map(index, need)
            if start < 0 or not 0 < length <= min(ANSWER_BYTES, ranges.size - start):
                raise ValueError
        except (TypeError, ValueError):
            raise self._lost("it asks for bytes that the file does not have") from None
        try:
            data = ranges.fetch(start, length)[:length]
            self._memory[: len(data)] = data
            send(self._connection, {"got": len(data)})
        except BaseException:  # the process waits for an answer that does not come
            self.close()
            raise

    def _answer(self, end: float) -> dict[str, Any]:
        try:
            answer, _ = receive(self._connection, max(1e-3, end - time.monotonic()))
        except TimeoutError:
            raise self._lost(f"reading it took longer than {self._seconds:.0f} s") from None
        except (EOFError, OSError):
            raise self._lost("reading it ended the process that reads it") from None
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise self._lost("the process that reads it answered nonsense")
        if "error" in answer:
            raise self._told(str(answer["error"]), str(answer.get("text")))
        return answer

    def _told(self, kind: str, text: str) -> InputError:
        if kind == "input":
            return InputError(text)
        if kind == "MemoryError":
            return InputError(
                f"{self.path.name} cannot be read: that takes more than {_memory_limit() >> 20:,} "
                "MiB of memory. Convert it (a slide to a pyramidal TIFF: vips tiffsave --tile "
                "--pyramid), or read it where there is more"
            )
        return ReadError(text)

    def _lost(self, reason: str) -> InputError:
        """Give the process up, and return the error that says why."""
        self.failed = True
        status = end_child(self.pid)
        self._connection.close()
        ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else signal.SIGKILL
        if ended == signal.SIGPROF:
            return InputError(
                f"{self.path.name} cannot be read: that takes more computing than any such file "
                "needs. It is damaged: copy it again from its source"
            )
        if ended != signal.SIGKILL:
            reason += f" ({signal.Signals(ended).name})"
        return InputError(
            f"{self.path.name} cannot be read: {reason}. It is damaged, or needs more memory than "
            f"{_memory_limit() >> 20:,} MiB: copy it again from its source, or convert it"
        )


def open_sandboxed(
    opener: str,
    path: Path,
    *arguments: Any,
    files: Sequence[Path] | None = None,
    folders: Sequence[Path] = (),
    shared: int = ANSWER_BYTES,
    modules: Sequence[str] = (),
    seconds: float | None = None,
    cpu_seconds: float = 0.0,
    ranges: Ranges | None = None,
) -> SandboxedFile:
    """Open a file in a process that can read nothing else.

    Args:
        opener: 'module:class' of its reader. The class is called with the path and `arguments`;
            it has `facts`, JSON, and `read`, which returns an array or facts, or `fill`, which
            writes into the shared memory. All may raise; an `InputError` reaches the caller as it
            is.
        path: the file.
        arguments: further arguments, JSON.
        files: files that the process may read, and folders with all that lies below them; None:
            `path` alone.
        folders: folders that it may list.
        shared: bytes of the memory that both share, `ANSWER_BYTES` at least; what nobody writes
            to takes no memory.
        modules: modules that it needs besides that of `opener`.
        seconds: longest time that opening the file, or reading a part of it, may take; None:
            `SECONDS`.
        cpu_seconds: longest processor time for the same; 0: no limit of its own.
        ranges: the file on a server; `path` is then only its name. The reader's class is called
            with a file object that asks for what is read.

    Raises:
        InputError: the reader refuses the file, crashes, or takes too long or too much memory.
        HeteroTissueError: the sandbox cannot be started.
    """
    message = {
        "opener": opener,
        "modules": list(modules),
        "path": str(path.absolute()),
        "size": None if ranges is None else ranges.size,
        "arguments": arguments,
        "files": [str(item.absolute()) for item in ([path] if files is None else files)],
        "folders": [str(item.absolute()) for item in folders],
        "memory": _memory_limit(),
        "cpu_seconds": cpu_seconds,
    }
    memory = _shared_memory(shared)
    own, childs = socket.socketpair()
    try:
        pid = sandbox_server().ask(message, (childs.fileno(), memory))["pid"]
        mapped = mmap.mmap(memory, shared)
    except BaseException:
        own.close()
        raise
    finally:
        childs.close()
        os.close(memory)
    return SandboxedFile(path, own, mapped, pid, seconds, ranges)


def _shared_memory(size: int) -> int:
    """Return a descriptor of `size` bytes of memory, whose size nobody can change."""
    if sys.platform == "linux":
        import fcntl

        memory = os.memfd_create("heterotissue", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(memory, size)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
        return memory
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        return os.dup(file.fileno())


def _memory_limit() -> int:
    return min(MAX_MEMORY, machine_memory() // 2)
