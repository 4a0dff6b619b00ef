"""A run of steps within a limited time, whose figures are written after every step."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any


@dataclass
class Day:
    """The results so far, and the time that is left.

    Attributes:
        out: file of the results, as JSON.
        seconds: time for all steps.
        only: names of the steps to run, or their first words; empty: all.
        result: the results.
    """

    out: Path
    seconds: float
    only: frozenset[str] = frozenset()
    result: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.seconds - (time.monotonic() - self.began)

    def step(self, name: str, needs: float, work: Callable[[], Any]) -> None:
        """Run a step, and write its result.

        A step that fails leaves its error instead, so that the next steps run. A step is left out
        if less than `needs` seconds are left.
        """
        if self.only and name.partition(" ")[0] not in self.only:
            return
        began = time.monotonic()
        if self.left < needs:
            value: Any = {"left_out": f"{self.left:.0f} s were left, and it needs {needs:.0f} s"}
        else:
            try:
                value = work()
            except Exception as error:
                traceback.print_exc()
                value = {"error": f"{type(error).__name__}: {error}"}
        self.keep(name, value, round(time.monotonic() - began, 1))

    def keep(self, name: str, value: Any, seconds: float = 0.0) -> None:
        """Write a result, and the seconds that it took."""
        self.result[name] = value
        self.result.setdefault("seconds", {})[name] = seconds
        print(json.dumps({name: value, "seconds": seconds}), flush=True)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(self.result, indent=1) + "\n")


def packages() -> dict[str, str]:
    """Return the version of every installed package that this process has imported so far."""
    owners = metadata.packages_distributions()
    top = {name.partition(".")[0] for name in sys.modules}
    names = {owner for name in top for owner in owners.get(name, [])}
    return {name: metadata.version(name) for name in sorted(names, key=str.lower)}
