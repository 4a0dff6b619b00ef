"""The probe of containers, and settings from files of secrets."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.queue import health
from shared.settings import Settings


def test_a_worker_is_healthy_while_it_shows_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "BEAT", tmp_path / "alive")
    assert "not reached Redis" in str(health.trouble_with_beat())
    health.beat()
    assert health.trouble_with_beat() is None
    old = time.time() - 2 * health.MAX_BEAT_AGE_SECONDS
    os.utime(health.BEAT, (old, old))
    assert "the last sign of life is 180 s old" in str(health.trouble_with_beat())


def test_the_probe_fails_with_the_reason_and_imports_nothing_slow() -> None:
    code = (
        "import sys; sys.argv[1:] = ['http://127.0.0.1:1/readyz']\n"
        "import shared.queue.health as h\n"
        "assert not {'pydantic', 'redis', 'celery', 'numpy'} & set(sys.modules)\n"
        "h.main()"
    )
    probe = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert probe.returncode == 1
    assert "http://127.0.0.1:1/readyz" in probe.stderr


def test_secrets_are_read_from_files_and_the_environment_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HTD_S3_ACCESS_KEY", raising=False)
    (tmp_path / "htd_broker_url").write_text("redis://:pw@redis:6379/0\n")
    (tmp_path / "htd_s3_access_key").write_text("from-file")
    monkeypatch.setenv("HTD_BROKER_URL", "redis://environment:6379/0")
    config = Settings(_secrets_dir=tmp_path)
    assert config.s3_access_key.get_secret_value() == "from-file"
    assert config.broker_url.get_secret_value() == "redis://environment:6379/0"
    monkeypatch.delenv("HTD_BROKER_URL")
    config = Settings(_secrets_dir=tmp_path)
    assert config.broker_url.get_secret_value() == "redis://:pw@redis:6379/0"
