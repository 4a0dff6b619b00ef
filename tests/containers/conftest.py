"""Images built once, and the stack of the compose file."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.settings import Settings
from shared.storage import DirectoryStore, Store, open_store
from tests.containers.compose import Compose, build_images, free_port
from tests.containers.standins import trouble_with_builder
from tests.models import publish_toy_model
from tests.region_sets import make_region_set


@pytest.fixture(scope="session")
def images() -> dict[str, str]:
    """Every image that runs without a GPU: size in bytes by name."""
    if shutil.which("docker") is None:
        pytest.skip("no Docker client on this machine")
    if subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("the Docker engine does not answer")
    if trouble := trouble_with_builder():
        pytest.fail(trouble, pytrace=False)
    return build_images()


class Running:
    """A stack that is up, with a toy model in its store.

    Attributes:
        model: a directory store that holds the same model.
    """

    def __init__(self, compose: Compose, folder: Path) -> None:
        self.compose = compose
        self.url = f"http://127.0.0.1:{compose.settings['GATEWAY_PORT']}"
        compose.up()
        command = ("exec", "-T", "gateway", "python", "-m", "services.gateway", "token")
        self.token = compose.run(*command).strip()
        self.model = DirectoryStore(folder / "model")
        publish_toy_model(self.model, make_region_set(self.model))
        self.store = self._store()
        for key in self.model.list():
            self.store.put(key, self.model.get(key))

    def _store(self) -> Store:
        secrets = self.compose.folder / "secrets" / "gateway"
        return open_store(
            config=Settings(
                store="s3://heterotissue",
                s3_endpoint=self.compose.settings["HTD_S3_PUBLIC_ENDPOINT"],
                _secrets_dir=secrets,
            )
        )

    def command(self, service: str, code: str, folder: Path) -> None:
        """Run Python in the image of a service, with nothing but a folder of this machine."""
        image = self.compose.run("images", "-q", service).split()[0]
        subprocess.run(
            ["docker", "run", "--rm", "--network", "none", "--user", str(os.getuid()),
             "--volume", f"{folder}:/work", image, "python", "-c", code],
            check=True,
        )  # fmt: skip


def bring_up(
    folder: Path,
    profiles: str,
    files: tuple[str, ...] = ("docker-compose.yml",),
    **settings: str,
) -> Compose:
    """Plan a stack on free ports, with short times."""
    ports = {"GATEWAY_PORT": str(free_port()), "S3_PORT": str(free_port())}
    quick = {"HTD_LEASE_SECONDS": "4", "HTD_RECONCILE_SECONDS": "1"}
    links = {"HTD_S3_PUBLIC_ENDPOINT": f"http://127.0.0.1:{ports['S3_PORT']}"}
    return Compose(folder, profiles, ports | quick | links | settings, files)


@pytest.fixture(scope="module")
def running(images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Everything of the profile cpu, as `docker compose up` starts it."""
    compose = bring_up(tmp_path_factory.mktemp("compose"), "cpu")
    try:
        yield Running(compose, tmp_path_factory.mktemp("model"))
    finally:
        compose.down()
