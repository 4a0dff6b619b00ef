"""Files whose content is a JSON value, such as a table or outlines, parsed in the sandbox."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.computing import machine_memory
from shared.errors import InputError
from shared.sandbox.files import ANSWER_BYTES, open_sandboxed

SECONDS = 1200.0
"""Longest time that parsing a file may take: gigabytes of outlines take minutes."""

MAX_BYTES = 4 << 30
"""Longest JSON text that is taken, but at most an eighth of the machine's memory: its value takes
some three times as much."""


class Document:
    """The reader of a JSON value; functions that the sandbox calls return it.

    Attributes:
        facts: the length of the JSON text in `bytes`.
    """

    def __init__(self, value: Any) -> None:
        self._text = json.dumps(value, separators=(",", ":")).encode()
        self.facts = {"bytes": len(self._text)}

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return a part of the text."""
        return np.frombuffer(self._text[start:stop], np.uint8)


def read_document(
    opener: str, path: Path, *arguments: Any, files: Sequence[Path] | None = None
) -> Any:
    """Parse a file in the sandbox, and return the JSON value that its parser makes of it.

    Args:
        opener: 'module:function' of the parser, which returns a `Document`; see `open_sandboxed`.
        path: the file.
        arguments: further arguments, JSON.
        files: files that the parser may read; None: `path` alone.

    Raises:
        InputError: the parser refuses the file, crashes, or takes too long or too much memory.
    """
    with open_sandboxed(opener, path, *arguments, files=files, seconds=SECONDS) as file:
        length = file.facts.get("bytes")
        most = min(MAX_BYTES, machine_memory() // 8)
        if not isinstance(length, int) or not 0 <= length <= most:
            raise InputError(f"{path.name} holds too much to be read at once: split it")
        text = b"".join(
            file.read([at, end], (end - at,), np.uint8).tobytes()
            for at in range(0, length, ANSWER_BYTES)
            for end in [min(length, at + ANSWER_BYTES)]
        )
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path.name} cannot be read: its parser answered nonsense") from error
