"""Commands, paths, links and API calls in the documentation exist; nothing is run here."""

from __future__ import annotations

import ast
import importlib
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from shared.settings import Settings
from tests.docs.checks import check
from tests.docs.pages import MARKS, PAGES, ROOT, blocks, commands, lines, name, prose, spans
from tests.docs.routes import find_route

ROOMS = tuple(
    f"{path.name}/"
    for path in ROOT.iterdir()
    if path.is_dir() and path.name not in ("out", "build")
)
PROGRAMS = ("htd ", "make ", "python ", "docker compose ", "kubectl ", "torchrun ")

each_page = pytest.mark.parametrize("page", PAGES, ids=name)


@each_page
def test_shell_blocks_say_what_they_need(page: Path) -> None:
    marked = [block for block in blocks(page) if block.needs]
    for block in marked:
        assert block.needs <= MARKS, f"{block.place}: unknown {sorted(block.needs - MARKS)}"
        assert block.language == "sh", f"{block.place}: a mark belongs to a block of sh"
    assert "<!-- needs:" not in prose(page), f"{name(page)}: a mark without a block after it"
    for block in blocks(page):
        assert block.language not in ("bash", "shell", "console"), f"{block.place}: call it sh"


@each_page
def test_commands_of_blocks_can_be_run(page: Path) -> None:
    for block in blocks(page, "sh"):
        for line in lines(block.text):
            for words in commands(line):
                wrong = check(words)
                assert wrong is None, f"{block.place}: {' '.join(words)}: {wrong}"


@each_page
def test_commands_of_the_prose_can_be_run(page: Path) -> None:
    for span in spans(page):
        if re.sub(r"^([A-Z_]+=\S+ )+", "", span).startswith(PROGRAMS):
            for words in commands(re.sub(r"<[\w-]+>", "x", span)):
                wrong = check(words, whole=False)
                assert wrong is None, f"{name(page)}: {span}: {wrong}"


@each_page
def test_files_are_there(page: Path) -> None:
    for span in spans(page):
        if span.startswith(ROOMS) and " " not in span and "<" not in span:
            path = span.partition("::")[0]  # a test is <file>::<function>
            assert list(ROOT.glob(path)), f"{name(page)}: no {span}"


@each_page
def test_modules_extras_and_settings_are_there(page: Path) -> None:
    environment = {f"HTD_{field.upper()}" for field in Settings.model_fields}
    files = ("docker-compose.yml", ".env.example", "heterotissue/remote.py")
    others = "".join((ROOT / file).read_text() for file in files)
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for span in spans(page):
        if re.fullmatch(r"(shared|services|heterotissue|tests)(\.\w+)+", span):
            assert _resolves(span), f"{name(page)}: no {span}"
        if found := re.fullmatch(r"heterotissue\[(\w+)\]", span):
            assert found[1] in extras, f"{name(page)}: no extra {span}"
        for variable in re.findall(r"\bHTD_\w+\b(?!\*)", span):
            known = variable in environment or variable in others
            assert known, f"{name(page)}: no setting {variable}"


def _resolves(dotted: str) -> bool:
    """Whether this names a module, or something in one."""
    parent, _, last = dotted.rpartition(".")
    if find_spec(parent) is None:
        return False
    module = importlib.import_module(parent)
    if hasattr(module, last):
        return True
    return hasattr(module, "__path__") and find_spec(dotted) is not None


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        assert path.is_file(), f"{name(page)}: no {target}"
        if anchor:
            assert anchor in _anchors(path), f"{name(page)}: no heading {target}"


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_operations_of_the_api_are_there(page: Path) -> None:
    for span in spans(page):
        found = re.fullmatch(
            r"(?:(GET|POST|PUT|DELETE) )?((?:/v1/|…/|/healthz|/readyz|/metrics)\S*)", span
        )
        if found:
            assert find_route(found[2], found[1]), f"{name(page)}: the API has no {span}"


@each_page
def test_python_blocks_compile_and_their_imports_exist(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block.text, block.place)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    assert find_spec(alias.name), f"{block.place}: no module {alias.name}"
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    assert _resolves(f"{node.module}.{alias.name}"), f"{block.place}: {alias.name}"


def test_the_layout_is_that_of_the_repository() -> None:
    text = (ROOT / "README.md").read_text().partition("## Layout")[2]
    parent = ROOT
    rooms = re.findall(
        r"^( *)([\w.]+/?)  +\S", re.findall(r"```\n(.*?)```", text, re.DOTALL)[0], re.MULTILINE
    )
    assert len(rooms) > 20
    for indent, room in rooms:
        parent = parent if indent else ROOT
        assert (parent / room).exists(), f"README.md: no {room}"
        parent = parent if indent else ROOT / room
    services = {path.parent.name for path in (ROOT / "services").glob("*/__init__.py")}
    assert services == {room[:-1] for _, room in rooms if (ROOT / "services" / room).is_dir()}


def test_a_wrong_command_is_noticed() -> None:
    for line in (
        "htd paint",
        "htd ingest slides/ --cohorts lung",
        "htd synthesize --model lung --images none",
        "htd train --regions lung --recipe huge",
        "htd train --regions lung --set recipe.denoiser.depth=3",
        "make demos",
        "make demo SLIDE=x",
        "python benchmarks/speed.py",
        "python benchmarks/solver.py STORE MODEL --step 3",
        "kubectl apply -k k8s/overlays/tpu",
        "docker compose --profile tpu build",
        "curl $URL/v1/paintings",
        "paint",
    ):
        for words in commands(line):
            assert check(words), line
