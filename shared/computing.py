"""Preparing a process to compute: its number of threads, and the memory that it keeps."""

from __future__ import annotations

import ctypes
import os
import sys

SPIN = {"GOMP_SPINCOUNT": "3000", "OMP_WAIT_POLICY": "active"}
"""Environment in which an OpenMP thread that waits for others spins briefly, then sleeps.

By default it spins as long as a step takes, on a core that another process needs: two
processes on the same cores come to a standstill (`benchmarks/spinning.py`). The policy matters
if two threads of a process compute in turn, because without it they hardly spin at all.
"""

HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
"""Environment in which PyTorch asks for huge pages, if it is set before the first tensor."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def prepare(threads: int) -> None:
    """Make this process ready to compute on `threads` CPU threads.

    The number is fixed, so that sums round the same everywhere. Libraries that are not loaded
    yet read the environment; those that are loaded are set directly.
    """
    for name, value in (SPIN | HUGE_PAGES).items():
        os.environ.setdefault(name, value)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    set_threads(threads)
    _keep_freed_memory()


def set_threads(threads: int) -> None:
    """Set the number of CPU threads of the libraries that are loaded, torch and faiss."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    if "faiss" in sys.modules:
        sys.modules["faiss"].omp_set_num_threads(threads)


def _keep_freed_memory() -> None:
    """Have the C library reuse freed memory: up to 2 GiB, in blocks of at most 32 MiB.

    By default glibc returns large tensors to the system, which fills the next ones with zeros,
    page by page: up to two thirds of an encoder's time (`benchmarks/allocation.py`). It never
    reuses larger blocks, whatever the settings.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # only glibc has it
        mallopt(_MMAP_THRESHOLD, 2**25)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
