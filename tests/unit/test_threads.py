"""What processes that share cores are told about threads."""

from __future__ import annotations

import os

import pytest
import torch

from shared.threads import SPIN, limit

NUMBERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def test_threads_are_limited_and_sleep_while_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NUMBERS, *SPIN):
        monkeypatch.setenv(name, "7")  # what a user has set is put back afterwards
        monkeypatch.delenv(name)
    before = torch.get_num_threads()
    try:
        limit(before + 1)
        assert torch.get_num_threads() == before + 1
        assert {os.environ[name] for name in NUMBERS} == {str(before + 1)}
        assert SPIN.items() <= os.environ.items()
        monkeypatch.setenv("GOMP_SPINCOUNT", "5")
        limit(before)
        assert os.environ["GOMP_SPINCOUNT"] == "5"
    finally:
        torch.set_num_threads(before)
