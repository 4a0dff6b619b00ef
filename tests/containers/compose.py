"""The stack of docker-compose.yml, built and run as a user would."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml

from tests.containers.standins import ROOT, build, docker, ensure_base_images, torch_index


def compose_command() -> list[str]:
    """`docker compose`, or docker-compose where the engine's client has no such plugin."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    return ["docker-compose"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until `condition` holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.5)


class Compose:
    """One project of the compose file, with secrets and settings of its own.

    Args:
        folder: gets a copy of what the compose file mounts, and `.env` and `secrets/`.
        profiles: to bring up.
        settings: variables of `.env` that differ from `.env.example`.
        files: compose files.
    """

    def __init__(
        self,
        folder: Path,
        profiles: str,
        settings: dict[str, str],
        files: tuple[str, ...] = ("docker-compose.yml",),
    ) -> None:
        self.folder, self.files = folder, files
        self.project = f"htd-test-{secrets.token_hex(3)}"
        for name in (*files, ".env.example"):
            shutil.copy(ROOT / name, folder / name)
        shutil.copytree(ROOT / "docker", folder / "docker")
        subprocess.run(["sh", "docker/secrets.sh"], cwd=folder, check=True)
        lines = dict(
            line.split("=", 1)
            for line in (folder / ".env").read_text().splitlines()
            if line and not line.startswith("#")
        )
        self.settings = lines | {"COMPOSE_PROFILES": profiles} | settings
        text = "".join(f"{name}={value}\n" for name, value in self.settings.items())
        (folder / ".env").write_text(text)

    def run(self, *arguments: str, check: bool = True) -> str:
        """Run compose on this project and return what it prints."""
        command = [*compose_command(), "--project-name", self.project]
        for name in self.files:
            command += ["--file", name]
        profiles = {"COMPOSE_PROFILES": self.settings["COMPOSE_PROFILES"]}
        done = subprocess.run(
            [*command, *arguments],
            cwd=self.folder, env=os.environ | profiles, capture_output=True, text=True,
        )  # fmt: skip
        if check and done.returncode:
            raise RuntimeError(f"compose {' '.join(arguments)}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def up(self) -> None:
        """Start everything and wait until all of it is healthy."""
        self.run("up", "-d", "--no-build")
        wait_for(self.healthy, 300, f"health; {self.states()}")

    def containers(self) -> dict[str, str]:
        """Container ids by service."""
        names = self.run("ps", "-q").split()
        shown = '{{index .Config.Labels "com.docker.compose.service"}} {{.Id}}'
        lines = docker("inspect", "--format", shown, *names).splitlines()
        return dict(line.split() for line in lines)

    def states(self) -> dict[str, str]:
        """State of health by service; of what has no health check, whether it runs."""
        shown = "{{if .State.Health}}{{.State.Health.Status}}{{else}}{{.State.Status}}{{end}}"
        return {
            service: docker("inspect", "--format", shown, identity)
            for service, identity in self.containers().items()
        }

    def healthy(self) -> bool:
        return all(
            state == "healthy" or (service == "s3-setup" and state == "exited")
            for service, state in self.states().items()
        )

    def logs(self, service: str) -> str:
        return docker("logs", self.containers()[service])

    def down(self) -> None:
        self.run("down", "--volumes", "--timeout", "10", check=False)


def described() -> dict[str, Any]:
    """The services of the compose file, without their variables put in."""
    text = (ROOT / "docker-compose.yml").read_text()
    services: dict[str, Any] = yaml.safe_load(text)["services"]
    return services


def image_name(service: dict[str, Any]) -> str:
    """Name of a service's image with the defaults of its variables."""
    name = str(service["image"])
    return name.replace("${HTD_REGISTRY:-heterotissue}", "heterotissue").replace(
        "${HTD_VERSION:-0.1.0}", "0.1.0"
    )


def build_images() -> dict[str, str]:
    """Build every image that needs no GPU; return its size by name."""
    arguments = ensure_base_images()
    with torch_index() if arguments else nullcontext("") as index:
        extra = arguments | ({"TORCH_INDEX": index} if index else {})
        for service in described().values():
            plan = service.get("build")
            if plan is None or plan.get("args", {}).get("ACCELERATOR") == "cuda":
                continue
            args = dict(plan.get("args", {}))
            needed = extra if args.get("ACCELERATOR") != "none" else {}
            build(image_name(service), ROOT, args | needed, target=plan["target"])
    names = {image_name(each) for each in described().values() if "build" in each}
    shown = [name for name in sorted(names) if "-cuda:" not in name]
    return {name: docker("image", "inspect", "--format", "{{.Size}}", name) for name in shown}
