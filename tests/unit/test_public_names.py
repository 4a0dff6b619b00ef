"""The package `heterotissue`: cheap to import, and whole."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import heterotissue

HEAVY = ("torch", "diffusers", "celery", "timm")


@pytest.mark.parametrize(
    "line", ["import heterotissue", "from heterotissue import Client, open_store"]
)
def test_the_package_is_imported_without_what_computes(line: str) -> None:
    code = f"import sys; {line}; print(*(name for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "heterotissue" in loaded
    assert not {name for name in loaded if name.split(".")[0] in {*HEAVY, "services"}}


def test_every_public_name_is_there_and_typed() -> None:
    for name in heterotissue.__all__:
        assert getattr(heterotissue, name) is not None
    tree = ast.parse(Path(heterotissue.__file__).read_text())
    typed = {
        (str(node.module), alias.name)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    loaded = {(module, name) for module, names in heterotissue._MODULES.items() for name in names}
    assert typed == loaded
    assert sorted(heterotissue.__all__) == sorted(name for _, name in loaded)


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        heterotissue.nothing  # noqa: B018
