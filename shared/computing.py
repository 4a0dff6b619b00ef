"""Preparing a process to compute: its number of CPU threads, and its reuse of freed memory."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import psutil

SPIN = {"GOMP_SPINCOUNT": "3000", "OMP_WAIT_POLICY": "active"}
"""Environment variables that make a waiting OpenMP thread spin briefly and then sleep.

By default a waiting thread spins for as long as a step takes, on a core that another process
needs, so two processes on the same cores slow each other almost to a standstill
(`benchmarks/spinning.py`). OMP_WAIT_POLICY is needed if two threads of a process compute in
turn, because without it their OpenMP threads hardly spin at all.
"""

HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
"""Environment variable that makes PyTorch ask for huge pages; set it before the first tensor."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # options of mallopt(3)


def prepare(threads: int) -> None:
    """Make this process ready to compute on `threads` CPU threads.

    The number is fixed, so that sums round in the same way everywhere. Libraries that are loaded
    later read it from the environment; it is set directly in those that are loaded already.
    """
    for name, value in (SPIN | HUGE_PAGES).items():
        os.environ.setdefault(name, value)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    set_threads(threads)
    _keep_freed_memory()


def set_threads(threads: int) -> None:
    """Set the number of CPU threads of torch and of faiss, if they are loaded."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    if "faiss" in sys.modules:
        sys.modules["faiss"].omp_set_num_threads(threads)


def _keep_freed_memory() -> None:
    """Make glibc keep up to 2 GiB of freed memory for reuse, in blocks of at most 32 MiB.

    By default glibc returns the memory of large tensors to the system, which must then fill new
    pages with zeros. This takes up to two thirds of an encoder's time
    (`benchmarks/allocation.py`). No setting makes glibc keep larger blocks.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # only glibc has it
        mallopt(_MMAP_THRESHOLD, 2**25)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def machine_memory() -> int:
    """Return the bytes of memory that this process may use: the machine's, or its container's."""
    total = int(psutil.virtual_memory().total)
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(name).read_text()))
        except (OSError, ValueError):
            continue
    return total
