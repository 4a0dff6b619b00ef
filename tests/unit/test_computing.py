"""What a process is told before it computes."""

from __future__ import annotations

import os
import platform
import resource

import pytest
import torch

from shared.computing import HUGE_PAGES, SPIN, prepare

NUMBERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def test_threads_are_limited_and_sleep_while_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    told = SPIN | HUGE_PAGES
    for name in (*NUMBERS, *told):
        monkeypatch.setenv(name, "7")  # what a user has set is put back afterwards
        monkeypatch.delenv(name)
    before = torch.get_num_threads()
    try:
        prepare(before + 1)
        assert torch.get_num_threads() == before + 1
        assert {os.environ[name] for name in NUMBERS} == {str(before + 1)}
        assert told.items() <= os.environ.items()
        monkeypatch.setenv("GOMP_SPINCOUNT", "5")
        prepare(before)
        assert os.environ["GOMP_SPINCOUNT"] == "5"
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told so")
def test_freed_memory_is_handed_out_again() -> None:
    size, rounds = 2**24, 8

    def fill() -> int:
        held = [b"x" * size for _ in range(4)]
        return len(held)

    prepare(torch.get_num_threads())
    fill()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pieces = sum(fill() for _ in range(rounds))
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < pieces * size // resource.getpagesize() // rounds
