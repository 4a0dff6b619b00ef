"""Rendered manifests, and what the code says that they must agree with."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.settings import Settings

ROOT = Path(__file__).parents[2]
FOLDERS = ("overlays/cpu", "overlays/gpu", "overlays/production", "jobs/train", "jobs/engine")
Manifest = dict[str, Any]


@functools.cache
def _rendered(folder: str) -> tuple[Manifest, ...]:
    done = subprocess.run(
        ["kubectl", "kustomize", str(ROOT / "k8s" / folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return tuple(item for item in yaml.safe_load_all(done.stdout) if item)


def rendered(folder: str) -> tuple[Manifest, ...]:
    """The objects of a kustomization."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which renders the manifests, is not on this machine")
    return _rendered(folder)


def pods(manifests: tuple[Manifest, ...]) -> Iterator[tuple[str, Manifest]]:
    """Name and pod template of every workload."""
    for item in manifests:
        if item["kind"] in {"Deployment", "StatefulSet", "Job"}:
            yield f"{item['kind']} {item['metadata']['name']}", item["spec"]["template"]


def containers(template: Manifest) -> list[Manifest]:
    spec = template["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def setting_names() -> set[str]:
    """Environment variables that the settings know."""
    return {f"HTD_{name.upper()}" for name in Settings.model_fields}


def secret_names() -> set[str]:
    """Secrets that the settings or the scripts in docker/ read from files."""
    scripts = "".join(path.read_text() for path in (ROOT / "docker").glob("*.sh"))
    drawn = set(re.findall(r"^draw (\w+)", scripts, re.M))
    fields = {f"htd_{name}" for name in Settings.model_fields}
    return drawn & (
        fields | {"redis_password", "s3_root_user", "s3_root_password", "grafana_password"}
    )


def services() -> set[str]:
    """Folders of services/ that can be run and have an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    folders = {path.parent.name for path in (ROOT / "services").glob("*/__main__.py")}
    return folders & set(project["optional-dependencies"])


def compose() -> Manifest:
    loaded: Manifest = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def dockerfile_argument(name: str) -> set[str]:
    """Defaults of a build argument."""
    return set(re.findall(rf"^ARG {name}=(\S+)", (ROOT / "Dockerfile").read_text(), re.M))
