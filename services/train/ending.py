"""Ending a training between two steps when its process is told to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed

from services.train.loop import world
from shared.errors import HandedBackError

SIGNALS = (signal.SIGTERM, signal.SIGQUIT)
"""What tells a process to end; workers in our images get SIGQUIT in place of SIGTERM."""


@contextmanager
def told_to_end() -> Iterator[Callable[[], bool]]:
    """Put off the end that this process is told, and yield a function that says whether any was.

    Every process has to call it after the same steps, and all get the same answer. After the block
    they all end.

    Raises:
        HandedBackError: a process was told to end, and has no other way to do so.
    """
    got: list[int] = []
    ends = False

    def told() -> bool:
        nonlocal ends
        flag = torch.tensor(len(got))
        if world()[1] > 1:
            distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        ends = bool(flag)
        return ends

    put_off: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other may set handlers
        for each in SIGNALS:
            if signal.getsignal(each) not in (None, signal.SIG_IGN):
                put_off[each] = signal.signal(each, lambda number, _: got.append(number))
    try:
        yield told
    finally:
        for number, handler in put_off.items():
            signal.signal(number, handler)
    if got and callable(handler := put_off[got[0]]):
        handler(got[0], None)
    if got or ends:
        raise HandedBackError(128 + signal.SIGTERM)
