"""The checks of `htd doctor`: hardware, installed services, and servers."""

from __future__ import annotations

import importlib
import os
import shutil
from dataclasses import dataclass

import psutil

from heterotissue.stack.servers import find_rclone, find_redis
from heterotissue.stages import load_stage
from shared.contracts.requests import REQUESTS
from shared.errors import HeteroTissueError
from shared.sandbox import protections


@dataclass(frozen=True)
class Finding:
    """The result of one check: its subject, whether it passed, and the details or the remedy."""

    name: str
    good: bool
    detail: str


def examine() -> list[Finding]:
    """Check the machine and the installation."""
    memory = psutil.virtual_memory().total / 2**30
    free = shutil.disk_usage(".").free / 2**30
    findings = [
        Finding("CPU", True, f"{os.cpu_count()} cores"),
        Finding("memory", memory >= 8, f"{memory:.0f} GiB (the demo needs 8)"),
        Finding("disk", free >= 5, f"{free:.0f} GiB free here"),
        _gpu(),
        _sandbox(),
    ]
    for name in REQUESTS:
        try:
            load_stage(name)
        except HeteroTissueError as error:
            findings.append(Finding(f"service {name}", False, str(error)))
        else:
            findings.append(Finding(f"service {name}", True, "installed"))
    for name, find in (("redis-server", find_redis), ("S3 server (rclone)", find_rclone)):
        try:
            findings.append(Finding(name, True, str(find())))
        except HeteroTissueError as error:
            findings.append(Finding(name, False, str(error)))
    return findings


def _sandbox() -> Finding:
    """Say what holds back the processes that decode slides and features."""
    there = protections()
    have = ", ".join(name for name, is_there in there.items() if is_there)
    lacks = ", ".join(name for name, is_there in there.items() if not is_there)
    lacking = f"; this kernel or container lacks: {lacks}" if lacks else ""
    return Finding("sandbox", not lacks, f"slides are read with {have}{lacking}")


def _gpu() -> Finding:
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return Finding("GPU", False, "torch is not installed: pip install 'heterotissue[train]'")
    if torch.cuda.is_available():
        return Finding("GPU", True, torch.cuda.get_device_name(0))
    return Finding("GPU", True, "none; everything runs on the CPU, larger recipes slowly")
