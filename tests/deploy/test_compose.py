"""The Dockerfile and the compose file agree with the code and with one another."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

from services.stages import REQUESTS
from tests.deploy.manifests import ROOT, compose, dockerfile_argument, secret_names, setting_names


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
        assert ":latest" not in service["image"]


def test_variables_and_secrets_are_known_to_the_settings() -> None:
    example = (ROOT / ".env.example").read_text()
    for name, service in compose()["services"].items():
        for variable in service.get("environment", {}):
            known = variable in setting_names() or variable.startswith(("MINIO_ROOT_", "GF_"))
            assert known, f"{name} sets {variable}, which no setting reads"
        assert set(service.get("secrets", [])) <= secret_names(), name
    assert set(compose()["secrets"]) == secret_names()
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
    (tmp_path / "docker").mkdir()
    for name in ("docker/secrets.sh", ".env.example"):
        (tmp_path / name).write_text((ROOT / name).read_text())

    def draw() -> dict[str, str]:
        subprocess.run(["sh", "docker/secrets.sh"], cwd=tmp_path, check=True)
        return {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}

    first = draw()
    assert set(first) == secret_names()
    assert first["redis_password"] in first["htd_broker_url"]
    assert len({value for name, value in first.items()}) == len(first)
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    assert draw() == first


def test_the_wheel_holds_every_file_that_is_not_code(tmp_path: Path) -> None:
    """Images are made from the wheel: what it lacks, they lack."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]
    listed = subprocess.run(
        ["git", "ls-files", "shared", "services", "triton_models", "htd_client"],
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
