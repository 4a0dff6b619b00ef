"""Every promise of docs/security.md names a test, and the test exists."""

from __future__ import annotations

import re

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs/security.md").read_text()
PROMISES = re.findall(r"^\| promise \| test \|\n\|---\|---\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
ROWS = [row for table in PROMISES for row in table.splitlines()]


def test_every_promise_is_held_by_a_test() -> None:
    assert len(ROWS) >= 25
    for row in ROWS:
        found = re.fullmatch(r"\| .+ \| `(tests/[\w/]+\.py)::(test_\w+)` \|", row)
        assert found is not None, f"no test: {row}"
        file = ROOT / found[1]
        assert file.is_file(), f"no file {found[1]}"
        defined = rf"^(?:async )?def {found[2]}\("
        assert re.search(defined, file.read_text(), re.MULTILINE), f"no {found[2]} in {found[1]}"


def test_every_test_that_is_named_is_in_a_table() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py::\w+)`", PAGE)
    assert len(named) == len(ROWS)
