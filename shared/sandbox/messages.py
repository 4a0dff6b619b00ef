"""Messages between the processes of the sandbox: JSON behind its length, and file descriptors."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

LENGTH = struct.Struct("<I")

_PIECE = 1 << 16

MAX_BYTES = 4 << 20
"""Longest message; the properties of a slide take a few kilobytes, and 20 times that in Python."""


def send(to: socket.socket, value: Any, descriptors: Sequence[int] = ()) -> None:
    """Send a JSON value, with file descriptors. Raises `OSError`."""
    body = json.dumps(value).encode()
    message = LENGTH.pack(len(body)) + body
    sent = socket.send_fds(to, [message], list(descriptors))
    if sent < len(message):
        to.sendall(message[sent:])


def receive(
    origin: socket.socket, seconds: float | None = None, descriptors: int = 0
) -> tuple[Any, list[int]]:
    """Receive a JSON value, and at most that many file descriptors.

    Nobody sends a message before the last one was answered, so none holds the begin of the next.

    Raises:
        EOFError: the other side has ended.
        TimeoutError: the message was not whole after `seconds`.
        ValueError: it is too long, or no JSON.
        OSError: the connection is broken.
    """
    end = None if seconds is None else time.monotonic() + seconds
    if origin.gettimeout() != seconds:
        origin.settimeout(seconds)
    data, found, *_ = socket.recv_fds(origin, _PIECE, descriptors)
    while data and len(data) < LENGTH.size:
        data += _piece(origin, end)
    if not data:
        raise EOFError
    (length,) = LENGTH.unpack_from(data)
    if length > MAX_BYTES:
        raise ValueError(f"a message of {length:,} bytes")
    parts, missing = [data[LENGTH.size :]], length - len(data) + LENGTH.size
    while missing > 0:
        parts.append(_piece(origin, end))
        missing -= len(parts[-1])
    return json.loads(b"".join(parts)), found


def _piece(origin: socket.socket, end: float | None) -> bytes:
    if end is not None:
        origin.settimeout(max(1e-3, end - time.monotonic()))
    piece = origin.recv(_PIECE)
    if not piece:
        raise EOFError
    return piece
