"""Datasets through the whole service: queue, S3, and a Triton that has its models from there."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from heterotissue.running import Target, run_request
from heterotissue.stack.supervisor import Stack
from shared.contracts.deploy import DeployRequest
from shared.contracts.synthesize import DatasetRequest, dataset_key
from shared.jobs import Ledger
from shared.queue.redis_state import read_progress
from shared.queue.worker import Dispatcher
from tests.integration.conftest import wait_for
from tests.region_sets import make_region_set
from tests.toy_training import train


def request(dataset: str) -> DatasetRequest:
    return DatasetRequest(dataset=dataset, model="m", images=40, shard_size=20, batch_size=2)


def pixels(target: Target, dataset: str) -> list[tuple[str, str]]:
    """SHA-256 of each image and mask; files differ, because they name their dataset."""
    table = pq.read_table(target.store.local(dataset_key(dataset, "manifest.parquet")))
    columns = [table.column(f"{kind}_sha256").to_pylist() for kind in ("image", "mask")]
    return list(zip(*columns, strict=True))


def test_a_server_that_is_killed_costs_time_and_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTD_RECONCILE_SECONDS", "0.5")
    with Stack(tmp_path, ["deploy", "synthesize"], print, triton=True) as stack:
        target = Target.of_config(stack.config)
        make_region_set(target.store)
        train(target.store)
        undeployed = run_request(target, request("early"))
        assert "run 'htd deploy" in str(undeployed.failed)
        assert run_request(target, DeployRequest(model="m", number=1)).state == "done"
        assert run_request(target, request("whole")).state == "done"

        ledger = Ledger(target.store)
        job = ledger.submit(request("killed"))
        dispatcher = Dispatcher(target.config)
        dispatcher.start(ledger, job)
        wait_for(lambda: any(each.done for each in read_progress(dispatcher.redis, job).values()))
        triton = next(process for process in stack.processes if process.name == "triton")
        os.killpg(triton.child.pid, signal.SIGKILL)
        triton.child.wait()
        stack.revive()
        wait_for(lambda: ledger.status(job).state not in {"planning", "running"}, 120)
        assert ledger.status(job).state == "done", ledger.status(job).failed
        assert pixels(target, "killed") == pixels(target, "whole")
        tries = [
            target.store.get_json(key)["errors"]
            for key in target.store.list(ledger.key(job, "attempts/"))
        ]
        assert not any(tries), "a server that is away is waited for, and is no error of a unit"
