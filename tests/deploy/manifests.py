"""Rendered manifests, and what the code says that they must agree with."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from heterotissue.cli.app import app
from shared.settings import Settings

ROOT = Path(__file__).parents[2]
OVERLAYS = ("overlays/cpu", "overlays/gpu", "overlays/production")
FOLDERS = (*OVERLAYS, "jobs/train", "jobs/engine", "examples")
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
        for job in jobs_of_runtime(item):
            yield f"Job {job['metadata']['name']}", job["spec"]["template"]


def jobs_of_runtime(item: Manifest) -> list[Manifest]:
    """The Jobs that Kubeflow Trainer makes from a TrainingRuntime."""
    if item["kind"] != "TrainingRuntime":
        return []
    return [
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}}
        | {"spec": job["template"]["spec"]}
        for job in item["spec"]["template"]["spec"]["replicatedJobs"]
    ]


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


def compose() -> Manifest:
    """The compose file with the defaults of its variables."""
    text = (ROOT / "docker-compose.yml").read_text()
    loaded: Manifest = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))
    return loaded


def check_command(name: str, words: list[str]) -> None:
    """Fail where a command names a module, subcommand or option of ours that is not there."""
    if "-m" in words:
        module = words[words.index("-m") + 1]
        assert importlib.util.find_spec(module), f"{name}: there is no {module}"
    if words[:1] == ["htd"]:
        group: Any = typer.main.get_command(app)
        try:
            group.commands[words[1]].make_context(words[1], words[2:])
        except Exception as error:
            raise AssertionError(f"{name}: {' '.join(words)}: {error}") from error


def dockerfile_stages() -> dict[str, str]:
    """Text of each stage of the Dockerfile by its name."""
    stages = (ROOT / "Dockerfile").read_text().split("\nFROM ")[1:]
    return {text.split("\n")[0].split()[-1]: text for text in stages}


def exposed_ports(stage: str) -> set[int]:
    """Ports that the image of a stage listens on; workers listen on none."""
    lines = re.findall(r"^EXPOSE (.+)$", dockerfile_stages().get(stage, ""), re.M)
    return {int(port) for line in lines for port in line.split()}


def dockerfile_argument(name: str) -> set[str]:
    """Defaults of a build argument."""
    return set(re.findall(rf"^ARG {name}=(\S+)", (ROOT / "Dockerfile").read_text(), re.M))
