"""Many small files of one origin that one process reads: cheaper than a process for each."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from shared.errors import InputError
from shared.sandbox.files import ReadError, SandboxedFile, open_sandboxed


class SeveralReader:
    """Reads several files inside the sandbox, each by the reader that a request names."""

    def __init__(self, path: Path) -> None:
        self.facts: dict[str, Any] = {}
        self._readers: dict[int, Any] = {}

    def read(self, closed: list[int], number: int, opener: str | None, *place: Any) -> Any:
        """Open a file (`opener` is 'module:class'), or read a part of one that is open."""
        for old in closed:
            self._readers.pop(old, None)
        if opener is None:
            return self._readers[number].read(*place)
        module, _, name = opener.partition(":")
        path, *arguments = place
        reader = getattr(importlib.import_module(module), name)(Path(path), *arguments)
        self._readers[number] = reader
        return reader.facts


class SandboxedFiles:
    """Opens files in one process, and in a new one after a loss. One thread uses it.

    Args:
        files: all files that the process may read.
        readers: modules of the readers, which are imported before the process is confined.
    """

    def __init__(self, files: Sequence[Path], readers: Sequence[str]) -> None:
        self._files, self._readers = files, readers
        self._process: SandboxedFile | None = None
        self._count = 0
        self._closed: list[int] = []

    def open(self, opener: str, path: Path, *arguments: Any) -> SandboxedMember:
        """Open a file; see `open_sandboxed`. Raises `InputError`."""
        if self._process is None or self._process.failed:
            self._closed = []
            self._process = open_sandboxed(
                "shared.sandbox.several:SeveralReader",
                path,
                files=self._files,
                modules=self._readers,
            )
        self._count += 1
        return SandboxedMember(self._process, self._closed, self._count, opener, path, arguments)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.close()

    def __enter__(self) -> SandboxedFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SandboxedMember:
    """A file that is open in a process with others; it has the interface of `SandboxedFile`."""

    def __init__(
        self,
        process: SandboxedFile,
        closed: list[int],
        number: int,
        opener: str,
        path: Path,
        arguments: Sequence[Any],
    ) -> None:
        self.path = path
        self._process, self._closed, self._number = process, closed, number
        self.close = weakref.finalize(self, closed.append, number)
        process.path = path  # messages name it
        try:
            self.facts = process.ask([self._taken(), number, opener, str(path), *arguments])
        except ReadError as error:
            raise InputError(str(error)) from error

    @property
    def failed(self) -> bool:
        """Whether the process was lost, so that nothing more can be read."""
        return self._process.failed

    def read(self, place: Sequence[Any], shape: Sequence[int], dtype: Any) -> NDArray[Any]:
        """Read a part of the file; see `SandboxedFile.read`."""
        self._process.path = self.path
        return self._process.read([self._taken(), self._number, None, *place], shape, dtype)

    def _taken(self) -> list[int]:
        """Return the numbers of the files that were closed since the last request."""
        numbers = self._closed.copy()
        del self._closed[: len(numbers)]
        return numbers
