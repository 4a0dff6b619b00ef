"""Rendered manifests, and what the code says that they must agree with."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from fastapi.routing import APIRoute

from heterotissue.cli.app import app
from services.gateway.api.ops import router
from shared.settings import Settings

ROOT = Path(__file__).parents[2]
OVERLAYS = ("cpu", "one-gpu", "gpu", "production")
VALUES = "  - ../../components/values\n"
"""The last component of an overlay, as the line that names it."""
GATEWAY_PATHS = {route.path for route in router.routes if isinstance(route, APIRoute)}
"""Paths at which the gateway tells of its own health and figures."""
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """An overlay as a user changes it: components added or replaced, and other values."""

    overlay: str
    added: tuple[str, ...] = ()
    replaced: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)

    def all_values(self) -> dict[str, str]:
        """The overlay's values.yaml with the changes of this variant."""
        path = ROOT / f"k8s/overlays/{self.overlay}/values.yaml"
        return yaml.safe_load(path.read_text())["data"] | self.values

    def own(self, image: str) -> str:
        """Name of one of our images without registry and version; of others the image itself."""
        given = self.all_values()
        inside = re.fullmatch(rf"{re.escape(given['registry'])}/(.+):{given['version']}", image)
        return inside[1] if inside else image


VARIANTS = {
    **{name: Variant(name) for name in OVERLAYS},
    "train": Variant("production", added=("jobs/train",)),
    "trainjob": Variant("production", added=("jobs/trainjob",)),
    "engine": Variant("gpu", added=("jobs/engine",)),
    "gpu-sampling": Variant(
        "gpu", added=("components/gpu-sampling",), values={"sample-gpus": "6", "embed-gpus": "3"}
    ),
    "ingress": Variant("production", replaced={"gateway-api": "ingress"}),
    "no-keda": Variant(
        "production",
        replaced={"keda": "managed-redis"},
        values={"redis": "redis.example.org:6379", "redis-network": "10.20.0.0/16"},
    ),
    "platform": Variant(
        "production",
        added=tuple(
            f"components/{name}"
            for name in ("openshift", "ca-bundle", "workload-identity", "managed-redis")
        ),
        values={
            "store-role": "arn:aws:iam::123456789012:role/heterotissue",
            "redis": "redis.example.org:6380",
            "redis-network": "10.20.0.0/16",
        },
    ),
    "elsewhere": Variant(
        "production",
        added=("jobs/train", "jobs/trainjob", "components/openshift"),
        values={
            "namespace": "my-tissue",
            "registry": "localhost:5000/team/tissue",
            "version": "9.9.9-rc.1",
            "store": "s3://other/prefix",
            "endpoint": "http://minio.storage.svc:9000",
            "region": "eu-west-3",
            "store-network": "10.96.0.0/12",
            "host": "tissue.lab.internal",
            "route-gateway": "lab",
            "route-gateway-namespace": "edge",
            "proxy-namespace": "envoy-gateway-system",
            "keda-namespace": "scaling",
            "monitoring-namespace": "observability",
            "monitoring-release": "prometheus",
        },
    ),
}


@functools.cache
def rendered(name: str) -> tuple[Manifest, ...]:
    """The objects of one of the VARIANTS."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which renders the manifests, is not on this machine")
    variant = VARIANTS[name]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "k8s", f"{folder}/k8s")
        shutil.copytree(ROOT / "docker", f"{folder}/docker")
        overlay = Path(folder) / "k8s/overlays" / variant.overlay
        change(overlay, variant)
        done = subprocess.run(
            ["kubectl", "kustomize", str(overlay)], capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    return tuple(item for item in yaml.safe_load_all(done.stdout) if item)


def change(overlay: Path, variant: Variant) -> None:
    """Edit a copied overlay as the docs say."""
    path = overlay / "kustomization.yaml"
    text = path.read_text()
    for old, new in variant.replaced.items():
        assert f"components/{old}\n" in text
        text = text.replace(f"components/{old}\n", f"components/{new}\n")
    if variant.added:
        lines = "".join(f"  - ../../{name}\n" for name in variant.added)
        assert VALUES in text
        text = text.replace(VALUES, lines + VALUES)
    path.write_text(text)
    values = yaml.safe_load((overlay / "values.yaml").read_text())
    values["data"] |= variant.values
    (overlay / "values.yaml").write_text(yaml.safe_dump(values))


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


def settings_of(manifests: tuple[Manifest, ...]) -> dict[str, str]:
    """The variables that all our pods are given."""
    found: dict[str, str] = next(
        i["data"] for i in manifests if i["metadata"]["name"].startswith("settings-")
    )
    return found


def gpus(template: Manifest) -> int:
    """GPUs, or slices of GPUs, that a pod asks for."""
    return sum(
        int(count)
        for container in containers(template)
        for name, count in container["resources"]["limits"].items()
        if name.startswith("nvidia.com/gpu")
    )


def setting_names() -> set[str]:
    """Environment variables that the settings know."""
    return {f"HTD_{name.upper()}" for name in Settings.model_fields}


@functools.lru_cache
def drawn_secrets() -> dict[str, set[str]]:
    """Folder in secrets/ → its files, as `make secrets` draws them."""
    with tempfile.TemporaryDirectory() as folder:
        draw_secrets(Path(folder))
        found = {path.name: path for path in (Path(folder) / "secrets").iterdir()}
        return {name: {file.name for file in path.iterdir()} for name, path in found.items()}


def draw_secrets(folder: Path) -> None:
    """Run docker/secrets.sh on a copy in a folder."""
    (folder / "docker").mkdir(exist_ok=True)
    for name in ("docker/secrets.sh", ".env.example"):
        (folder / name).write_text((ROOT / name).read_text())
    subprocess.run(["sh", "docker/secrets.sh"], cwd=folder, check=True)


def secret_names() -> set[str]:
    """Secrets that the settings or the servers read from files."""
    fields = {f"htd_{name}" for name in Settings.model_fields}
    return fields | {"redis_password", "s3_root_user", "s3_root_password", "grafana_password"}


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
