"""Fixing the CPU threads of numeric libraries."""

from __future__ import annotations

import os
import sys

SPIN = {"GOMP_SPINCOUNT": "3000"}
"""Environment that has an OpenMP thread spin for a moment, then sleep, while others still compute.

Unless told, it spins for as long as a step takes, on a core that another process needs: two
processes on the same cores come to a standstill (`benchmarks/spinning.py`).
"""


def limit(threads: int) -> None:
    """Let numeric libraries use `threads` CPU threads, so that sums round the same everywhere.

    Libraries that are not loaded yet read the environment; torch is told directly.
    """
    for name, value in SPIN.items():
        os.environ.setdefault(name, value)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
