"""Messages between the processes of the sandbox: JSON behind its length, and file descriptors."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

LENGTH = struct.Struct("<I")

MAX_BYTES = 16 << 20
"""Longest message; the properties of a slide take a few kilobytes."""


def send(to: socket.socket, value: Any, descriptors: Sequence[int] = ()) -> None:
    """Send a JSON value, with file descriptors. Raises `OSError`."""
    body = json.dumps(value).encode()
    socket.send_fds(to, [LENGTH.pack(len(body))], list(descriptors))
    to.sendall(body)


def receive(
    origin: socket.socket, seconds: float | None = None, descriptors: int = 0
) -> tuple[Any, list[int]]:
    """Receive a JSON value, and at most that many file descriptors.

    Raises:
        EOFError: the other side has ended.
        TimeoutError: the message was not whole after `seconds`.
        ValueError: it is too long, or no JSON.
        OSError: the connection is broken.
    """
    end = None if seconds is None else time.monotonic() + seconds
    origin.settimeout(seconds)
    head, found, *_ = socket.recv_fds(origin, LENGTH.size, descriptors)
    if not head:
        raise EOFError
    head += _exactly(origin, LENGTH.size - len(head), end)
    (length,) = LENGTH.unpack(head)
    if length > MAX_BYTES:
        raise ValueError(f"a message of {length:,} bytes")
    return json.loads(_exactly(origin, length, end)), found


def _exactly(origin: socket.socket, count: int, end: float | None) -> bytes:
    parts = []
    while count:
        if end is not None:
            origin.settimeout(max(1e-3, end - time.monotonic()))
        part = origin.recv(min(count, 1 << 16))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
