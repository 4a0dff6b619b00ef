"""What a process is told before it computes: how many threads, and to keep its memory."""

from __future__ import annotations

import ctypes
import os
import sys

SPIN = {"GOMP_SPINCOUNT": "3000", "OMP_WAIT_POLICY": "active"}
"""Environment that has an OpenMP thread spin for a moment, then sleep, while others still compute.

Unless told, it spins for as long as a step takes, on a core that another process needs: two
processes on the same cores come to a standstill (`benchmarks/spinning.py`). The policy counts
where two threads of a process compute in turn: without it, they would hardly spin at all.
"""
HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
"""Environment that has PyTorch ask for huge pages, if set before its first tensor."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def prepare(threads: int) -> None:
    """Make this process ready to compute on `threads` CPU threads.

    The number is fixed, so that sums round the same everywhere. Libraries that are not loaded
    yet read the environment; torch is told directly.
    """
    for name, value in (SPIN | HUGE_PAGES).items():
        os.environ.setdefault(name, value)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Have the C library hand freed memory out again: up to 2 GiB, in pieces of 32 MiB at most.

    Unless told, glibc returns large tensors to the system, which fills the next ones with zeros,
    page by page: up to two thirds of an encoder's time (`benchmarks/allocation.py`). Of larger
    pieces it takes none back for another, whatever it is told.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc's alone
        mallopt(_MMAP_THRESHOLD, 2**25)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
