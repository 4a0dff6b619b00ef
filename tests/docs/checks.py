"""Check a command without running it: that its program, options, targets and paths exist."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from typer.main import get_command

from heterotissue.cli.app import app
from shared.contracts.requests import REQUESTS
from shared.contracts.train import PACKAGED
from tests.docs.pages import ROOT, commands

UNCHECKED = frozenset({"apt-get", "export", "mc", "pip", "rclone", "rm", "source", "tar"})
"""Programs of others, and words of the shell."""

STAGES = {"tiles": "ingest", "distill": "train", "publish": "deploy"}
"""Commands that are not named as the stage whose request they make."""


def check(words: list[str], *, whole: bool = True) -> str | None:
    """Say what is wrong with a command; None if nothing is.

    Args:
        words: program and arguments.
        whole: False for a command in prose, which may leave out what it requires.
    """
    if words[0] == "exec":
        words = words[1:]
    program = words[0].removeprefix(".venv/bin/")
    if program in UNCHECKED:
        return None
    if program == "htd":
        return _htd(words[1:], whole)
    if program == "make":
        return _make(words[1:], whole)
    checker = CHECKERS.get(program)
    return checker(words[1:]) if checker else f"no check for the program {program!r}"


def _htd(words: list[str], whole: bool) -> str | None:
    command: Any = get_command(app)
    title = "htd"
    while hasattr(command, "commands"):
        if not words:
            return None if not whole else f"{title} needs a command"
        if words[0] not in command.commands:
            return f"{title} has no command {words[0]!r}"
        command, title, words = command.commands[words[0]], words[0], words[1:]
    try:
        given = command.make_context(title, list(words)).params
    except Exception as error:  # of the click that typer carries, which it does not export
        if not whole and type(error).__name__ in ("MissingParameter", "BadOptionUsage"):
            return None
        return str(getattr(error, "message", error))
    return _values(title, given)


def _values(command: str, given: dict[str, Any]) -> str | None:
    recipe, start = given.get("recipe"), given.get("warm_start")
    shipped = {path.stem for path in (ROOT / "services/train/recipes").glob("*.yaml")}
    if recipe and not recipe.endswith(".yaml") and recipe not in shipped:
        return f"no recipe {recipe!r}"
    if start and start not in PACKAGED and not start.startswith("models/"):
        return f"no checkpoint {start!r}"
    for change in given.get("change") or ():
        path, _, value = change.partition("=")
        part: Any = REQUESTS[STAGES.get(command, command)]
        for field in path.split("."):
            if not (isinstance(part, type) and issubclass(part, BaseModel)):
                return f"--set {change}: no field {path}"
            if field not in part.model_fields:
                return f"--set {change}: no field {path}"
            part = part.model_fields[field].annotation
        yaml.safe_load(value)
    return None


def _make(words: list[str], whole: bool) -> str | None:
    try:
        steps = _dry_run(words)
        for word in words:
            if "=" in word and _dry_run([each for each in words if each != word]) == steps:
                return f"{word} changes nothing"
    except subprocess.CalledProcessError as error:
        return str(error.stderr)
    ours = [line for line in steps if line.startswith((".venv/bin/htd", ".venv/bin/python"))]
    for line in ours if whole else []:  # prose may leave out the variables that they take
        for each in commands(line):
            if wrong := check(each):
                return wrong
    return None


def _dry_run(words: list[str]) -> list[str]:
    """The lines that make would run."""
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", *words],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def _python(words: list[str]) -> str | None:
    if words[0] == "-m":
        file = _module(words[1])
        if file is None:
            return f"no module {words[1]!r} to run"
    else:
        file = ROOT / words[0]
        if not file.is_file():
            return f"no script {words[0]}"
    if ROOT in file.parents:
        source = file.read_text()
        for word in words:
            if word.startswith("--") and f'"{word.partition("=")[0]}"' not in source:
                return f"{file.relative_to(ROOT)} has no option {word}"
    return None


def _module(dotted: str) -> Path | None:
    spec = find_spec(dotted)
    if spec is not None and spec.submodule_search_locations:
        spec = find_spec(f"{dotted}.__main__")
    return Path(spec.origin) if spec is not None and spec.origin else None


def _torchrun(words: list[str]) -> str | None:
    return _python(words[words.index("-m") :])


def _docker(words: list[str]) -> str | None:
    profiles = {
        profile
        for service in yaml.safe_load((ROOT / "docker-compose.yml").read_text())[
            "services"
        ].values()
        for profile in service.get("profiles", [])
    }
    for option, value in itertools.pairwise(words):
        if option == "--profile" and value not in profiles:
            return f"docker-compose.yml has no profile {value!r}"
        if option == "-f" and not (ROOT / value).is_file():
            return f"no file {value}"
    return None


def _kubectl(words: list[str]) -> str | None:
    if "-k" in words[:-1]:
        folder = words[words.index("-k") + 1]
        if not (ROOT / folder / "kustomization.yaml").is_file():
            return f"{folder} holds no kustomization.yaml"
    return None


def _curl(words: list[str]) -> str | None:
    from tests.docs.routes import find_route

    urls = [word.removeprefix("$URL") for word in words if word.startswith("$URL")]
    if not urls:
        return None
    method = "GET"
    for word in words:
        method = {"-d": "POST", "-F": "POST", "-T": "PUT"}.get(word, method)
    if "-X" in words:
        method = words[words.index("-X") + 1]
    return None if find_route(urls[0], method) else f"the API has no {method} {urls[0]}"


CHECKERS: dict[str, Callable[[list[str]], str | None]] = {
    "curl": _curl,
    "docker": _docker,
    "kubectl": _kubectl,
    "python": _python,
    "torchrun": _torchrun,
}
