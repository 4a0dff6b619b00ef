"""Fixing the CPU threads of numeric libraries."""

from __future__ import annotations

import os
import sys


def limit(threads: int) -> None:
    """Let numeric libraries use `threads` CPU threads, so that sums round the same everywhere.

    Libraries that are not loaded yet read the environment; torch is told directly.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
