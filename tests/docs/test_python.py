"""docs/python.md: its code runs as it is written, block after block, on phantoms."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from heterotissue import SyntheticDataset
from shared.phantom import write_phantom
from shared.settings import settings
from tests.gateway import Gateway
from tests.phantoms import PHANTOM_SEED

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with slides, as the page has it."""
    for width in (896, 1024, 1152):
        write_phantom(tmp_path / "slides", f"phantom-{width}", width, 1024, PHANTOM_SEED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HTD_THREADS", "1")
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


@pytest.fixture
def _server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A gateway on the page's store, named by the environment."""
    gateway = Gateway(folder / "out" / "store")
    token, _ = gateway.resources.tokens.create("tester", "local", ("admin",))
    server = uvicorn.Server(uvicorn.Config(gateway.app, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    monkeypatch.setenv("HTD_SERVER", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("HTD_TOKEN", token)
    yield
    server.should_exit = True
    thread.join()


@pytest.mark.usefixtures("_server")
def test_the_page_runs_from_top_to_bottom(folder: Path) -> None:
    text = PAGE.read_text()
    names: dict[str, object] = {}
    for block in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        lines = text[: block.start(1)].count("\n")  # so that a traceback names the page's line
        exec(compile("\n" * lines + block[1], str(PAGE), "exec"), names)  # noqa: S102
    dataset = names["dataset"]
    assert isinstance(dataset, SyntheticDataset)
    assert len(dataset) == 8
    assert dataset[-1].provenance == dataset.provenance(7)
    assert (folder / "out/store/reports/first/report.html").is_file()
    assert len(list((folder / "out/first/shards").glob("*.tar"))) == 1
