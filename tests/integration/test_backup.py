"""The backup of docs/deploy.md, taken while a job runs: what is restored goes on to its end."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from heterotissue.stack.servers import BUCKET, find_rclone
from heterotissue.stack.supervisor import Stack
from shared.jobs import Ledger
from shared.queue.worker import Dispatcher
from shared.settings import Settings
from shared.storage import open_store
from tests.integration.conftest import toy_worker, wait_for
from tests.toy import ToyRequest

PAGE = Path(__file__).parents[2] / "docs" / "deploy.md"


@pytest.fixture
def commands(config: Settings, tmp_path: Path) -> list[list[str]]:
    """The commands of the page: two that back up, one that restores."""
    lines = [shlex.split(line, comments=True) for line in PAGE.read_text().splitlines()
             if line.startswith("rclone ")]  # fmt: skip
    assert [line[1:4] for line in lines] == [
        ["sync", f"store:{BUCKET}", f"backup:{BUCKET}"],
        ["sync", f"store:{BUCKET}", f"backup:{BUCKET}"],
        ["sync", f"backup:{BUCKET}", f"store:{BUCKET}"],
    ]
    return lines


def rclone(words: list[str], config: Settings, backup: Path) -> None:
    environment = {
        "RCLONE_CONFIG": "/dev/null",
        "RCLONE_CONFIG_STORE_TYPE": "s3",
        "RCLONE_CONFIG_STORE_PROVIDER": "Rclone",
        "RCLONE_CONFIG_STORE_ENDPOINT": config.s3_endpoint,
        "RCLONE_CONFIG_STORE_ACCESS_KEY_ID": config.s3_access_key.get_secret_value(),
        "RCLONE_CONFIG_STORE_SECRET_ACCESS_KEY": config.s3_secret_key.get_secret_value(),
        "RCLONE_CONFIG_BACKUP_TYPE": "alias",
        "RCLONE_CONFIG_BACKUP_REMOTE": str(backup),
    }
    subprocess.run([find_rclone(), *words[1:]], env=os.environ | environment, check=True)


def test_a_backup_that_is_taken_while_a_job_runs(
    servers: Stack, config: Settings, commands: list[list[str]], tmp_path: Path
) -> None:
    first, second, restore = commands
    ledger = Ledger(open_store(config=config))
    job = ledger.submit(ToyRequest(name="backup", parts=24, seconds=0.1))
    Dispatcher(config).start(ledger, job)
    with toy_worker(servers):
        wait_for(lambda: len(ledger.done(job)) > 3)
        rclone(first, config, tmp_path)
        copied = len(list((tmp_path / BUCKET / "jobs" / job / "done").iterdir()))
        wait_for(lambda: len(ledger.done(job)) > copied + 2)
        rclone(second, config, tmp_path)
        assert ledger.is_open(job)
    rclone(restore, config, tmp_path)
    assert len(ledger.done(job)) == copied < 24
    with toy_worker(servers):
        wait_for(lambda: ledger.result(job) is not None)
    total = sum(i * i for i in range(24))
    status = ledger.status(job)
    assert (status.state, status.done, status.result) == ("done", 26, {"sums": [total, total]})
