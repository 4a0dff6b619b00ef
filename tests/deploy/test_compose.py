"""The Dockerfile and the compose file agree with the code and with one another."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import yaml

from shared.computing import SPIN
from shared.contracts.requests import REQUESTS
from tests.deploy.manifests import (
    ROOT,
    check_command,
    compose,
    dockerfile_argument,
    dockerfile_stages,
    draw_secrets,
    drawn_secrets,
    exposed_ports,
    secret_names,
    setting_names,
)

ENDINGS = {"none": "", "cpu": "", "cuda": "-cuda"}
"""End of an image's name by the ACCELERATOR that it is built with."""


def test_every_stage_has_a_worker_and_an_image() -> None:
    services = compose()["services"]
    for stage in REQUESTS:
        service = services[stage]
        assert service["build"]["args"]["SERVICE"] == stage
        assert service["build"]["target"] == "worker"
        assert f"/{stage}:" in service["image"]
        assert "cpu" in service["profiles"]
        assert "gpu" in services.get(f"{stage}-gpu", service)["profiles"]


def test_every_container_is_bounded_healthy_and_without_rights() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    for name, service in compose()["services"].items():
        assert {"mem_limit", "cpus"} <= set(service), f"{name} may take the whole machine"
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service.get("read_only") or name == "s3", f"{name} may change its image"
        target = service.get("build", {}).get("target")
        own = target and re.search(
            rf"AS {target}\n(?:(?!^FROM).*\n)*?HEALTHCHECK", dockerfile, re.M
        )
        assert own or "healthcheck" in service or name == "s3-setup", f"{name} has no health check"
        assert re.search(r":(?!latest$).", service["image"]), f"{name}: its image has no version"


def test_images_run_without_root_and_say_what_they_are() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    stages = dockerfile_stages()
    for name in ("service", "triton"):
        assert "\nUSER 10001:10001\n" in stages[name], f"{name} runs as root"
        for label in ("title", "description", "version", "revision", "licenses"):
            assert f"org.opencontainers.image.{label}=" in stages[name], f"{name}: no {label}"
        for variable, value in SPIN.items():
            setting = f"{variable}={value}"
            assert setting in stages[name].split(), f"{name} does not set {setting}"
    assert 'ENTRYPOINT ["tini", "--"]' in stages["service"], "nobody reaps a worker's children"
    assert "REMAP_SIGTERM=SIGQUIT" in stages["service"], "a stopped worker keeps its shard"
    for base in re.findall(r"^ARG \w+_IMAGE=(\S+)", dockerfile, re.M):
        assert re.search(r":(?!latest$).", base), f"{base} names no version"
    for step in re.findall(r"^RUN (?:.*\\\n)*.*", dockerfile, re.M):
        if "pip install" in step or "pip wheel" in step:
            cached = "type=cache,target=/root/.cache/pip" in step or "--no-cache-dir" in step
            assert cached, f"downloads its packages at every build: {step}"


def test_commands_and_mounted_files_exist() -> None:
    for words in re.findall(r"CMD (\[.*\])$", (ROOT / "Dockerfile").read_text(), re.M):
        check_command("Dockerfile", json.loads(words))
    for name, service in compose()["services"].items():
        for words in (service.get("command", []), service.get("healthcheck", {}).get("test", [])):
            check_command(name, words)
        mounted = [each.split(":") for each in service.get("volumes", []) if each.startswith("./")]
        for source, *_ in mounted:
            if source.startswith("./secrets"):
                continue  # drawn
            assert (ROOT / source).exists(), f"{name} mounts {source}, which is not there"
        assert set(service.get("entrypoint", [])) <= {target for _, target, *_ in mounted}, name


def secrets_of(service: dict[str, Any]) -> str:
    """The folder in secrets/ that a service sees; empty for none, '.' for all."""
    mounted = [each for each in service.get("volumes", []) if ":/run/secrets:" in each]
    assert all(each.endswith(":ro") for each in mounted)
    assert len(mounted) <= 1
    found = mounted[0].split(":")[0] if mounted else "./secrets/"
    return found.removeprefix("./secrets").removeprefix("/") if mounted else ""


def test_everything_starts_when_what_it_needs_is_ready() -> None:
    needed = {"redis": "htd_broker_url", "s3-setup": "htd_s3_access_key"}
    drawn = drawn_secrets()
    for name, service in compose()["services"].items():
        after = {other: how["condition"] for other, how in service.get("depends_on", {}).items()}
        for other, secret in needed.items():
            if secret in drawn.get(secrets_of(service), set()) and name != other:
                assert other in after, f"{name} does not wait for {other}"
        for other, condition in after.items():
            ends = other == "s3-setup"
            assert condition == f"service_{'completed_successfully' if ends else 'healthy'}", name


def test_gpus_are_reserved_for_what_is_built_for_them() -> None:
    (version,) = dockerfile_argument("VERSION")
    one = [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    for name, service in compose()["services"].items():
        devices = service.get("deploy", {}).get("resources", {}).get("reservations", {})
        if name.endswith("-gpu"):
            assert service["profiles"] == ["gpu"], name
            assert devices == {"devices": one}, f"{name} gets no GPU"
        else:
            assert not devices, f"{name} does not start without a GPU"
        accelerator = service.get("build", {}).get("args", {}).get("ACCELERATOR")
        if accelerator:
            image = f"{service['build']['args']['SERVICE']}{ENDINGS[accelerator]}:{version}"
            assert service["image"].endswith(f"/{image}"), f"{name} is not named {image}"
            assert (accelerator == "cuda") == name.endswith("-gpu"), name
    assert compose()["services"]["triton-gpu"]["networks"]["inner"]["aliases"] == ["triton"]


def test_variables_and_secrets_are_known_to_the_settings() -> None:
    example = (ROOT / ".env.example").read_text()
    for name, service in compose()["services"].items():
        for variable in service.get("environment", {}):
            known = variable in setting_names() or variable.startswith(("MINIO_", "GF_"))
            assert known, f"{name} sets {variable}, which no setting reads"
        folder = secrets_of(service)
        assert folder in {*drawn_secrets(), ""}, name
        if service.get("build"):
            assert folder == name.removesuffix("-gpu"), f"{name} has the secrets of {folder}"
    assert set().union(*drawn_secrets().values()) <= secret_names()
    used = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    assert set(re.findall(r"^(\w+)=", example, re.M)) - {"COMPOSE_PROFILES"} <= used


def test_a_worker_is_given_longer_than_it_lets_its_shard_run() -> None:
    for stage in REQUESTS:
        service = compose()["services"][stage]
        grace = int(service["stop_grace_period"].removesuffix("s"))
        assert int(service["environment"]["HTD_STOP_SECONDS"]) < grace


def test_the_images_hold_the_pinned_torch() -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    pins = dict(line.split("==") for line in lines)
    assert dockerfile_argument("TORCH_VERSION") == {pins["torch"]}
    assert dockerfile_argument("TORCHVISION_VERSION") == {pins["torchvision"]}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert dockerfile_argument("VERSION") == {version}
    assert f"HTD_VERSION={version}" in (ROOT / ".env.example").read_text()


def test_secrets_are_drawn_once_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"

    def draw() -> dict[str, str]:
        draw_secrets(tmp_path)
        return {str(path.relative_to(folder)): path.read_text() for path in folder.glob("*/*")}

    first = draw()
    brokers = {value for name, value in first.items() if name.endswith("/htd_broker_url")}
    assert brokers == {f"redis://:{first['redis/redis_password']}@redis:6379/0"}
    others = [value for name, value in first.items() if not name.endswith("/htd_broker_url")]
    assert len(set(others)) == len(others)
    assert [name for name in first if name.endswith("htd_gateway_key")] == [
        "gateway/htd_gateway_key"
    ]
    users = {"redis": 999, "s3": 0, "grafana": 472}
    for path in folder.glob("*/*"):
        stat = path.stat()
        if os.getuid():
            assert stat.st_mode & 0o222 == 0, path
        else:  # each file belongs to the user of its container
            owner = users.get(path.parent.name, 10001)
            assert (stat.st_mode & 0o777, stat.st_uid) == (0o400, owner), path
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    assert draw() == first


def test_the_wheel_holds_every_file_that_is_not_code(tmp_path: Path) -> None:
    """Images are made from the wheel: what it lacks, they lack."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]
    listed = subprocess.run(
        ["git", "ls-files", "shared", "services", "triton_models", "heterotissue.client"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    for path in map(Path, listed):
        package = path.parent
        module = path.suffix == ".py" and (ROOT / package / "__init__.py").is_file()
        if module or path.name == "README.md":
            continue
        while not (ROOT / package / "__init__.py").is_file():
            package = package.parent
        name, inside = ".".join(package.parts), path.relative_to(package)
        own = [*patterns.get("*", []), *patterns.get(name, [])]
        held = any(
            inside.match(each) and len(inside.parts) == len(Path(each).parts)
            for each in own
            if "**" not in each
        )
        deep = any(
            inside.parts[: len(Path(each).parts) - 2] == Path(each).parts[:-2]
            for each in own
            if "**" in each
        )
        assert held or deep, f"{path}: add it to package-data in pyproject.toml"


def test_dashboard_and_alerts_show_figures_that_exist() -> None:
    monitoring = ROOT / "docker/monitoring"
    shown = (monitoring / "grafana/dashboards/heterotissue.json").read_text()
    named = set(re.findall(r"\bhtd_\w+", shown + (monitoring / "alerts.yml").read_text()))
    code = (ROOT / "services/gateway/api/ops.py").read_text()
    known = set(re.findall(r'"(htd_\w+)"', code))
    assert {re.sub(r"_(total|bucket)$", "", name) for name in named} <= known
    scraped = yaml.safe_load((monitoring / "prometheus.yml").read_text())["scrape_configs"]
    targets = {each for job in scraped for each in job["static_configs"][0]["targets"]}
    for target in targets:
        host, port = target.split(":")
        stage = compose()["services"][host]["build"]["target"]
        assert int(port) in exposed_ports(stage), f"nobody listens at {target}"


def test_figures_that_every_gateway_shows_are_counted_once() -> None:
    """Workers count in Redis, and each gateway shows the same counts."""
    board = json.loads(
        (ROOT / "docker/monitoring/grafana/dashboards/heterotissue.json").read_text()
    )
    for panel in board["panels"]:
        for target in panel["targets"]:
            if re.search(r"htd_(units|images|queue)", target["expr"]):
                assert target["expr"].startswith("max by (stage"), panel["title"]
