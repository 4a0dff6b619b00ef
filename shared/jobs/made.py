"""What earlier units of a job have made, and the check that it is still there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from threading import Lock

from shared.errors import HeteroTissueError, InputError

Outputs = tuple[str, Mapping[str, str]]
"""A unit, and what it made: key → SHA-256."""


class DamagedOutputError(HeteroTissueError):
    """Outputs, or markers, of earlier units are gone or damaged: the units must run again.

    Attributes:
        units: the units that made them.
    """

    def __init__(self, unit: str, key: str, *others: str) -> None:
        more = f", and {len(others)} other units do" if others else ""
        super().__init__(f"{key} is not what {unit} has written; {unit} runs again{more}")
        self.units = (unit, *others)


class ChangedInputError(InputError):
    """A record that a job reads is not as it was when the job was submitted."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"{key} has changed since this job was submitted, so that its results would be of two "
            "kinds: submit the request again"
        )


class Made:
    """Outputs of the earlier units that a unit has to do with, as far as they fit in memory.

    Args:
        changing: keys that people may change.
        own: beginnings of the keys that only units of this job make.
        further: more earlier units, which are asked for such a key alone.
        inputs: SHA-256 of the records that the job began with, by key.
    """

    UNITS = 4000

    def __init__(
        self,
        changing: Iterable[str] = (),
        own: tuple[str, ...] = (),
        further: Iterable[Outputs] = (),
        inputs: Mapping[str, str] | None = None,
    ) -> None:
        self._inputs = inputs or {}
        self._changing = frozenset(changing)
        self._own, self._further = own, iter(further)
        self._asking = Lock()
        self._asked: list[Outputs] = []  # those of `further` so far
        self._of: dict[str, list[str]] = {}  # unit → keys; the units that were added first go first
        self._outputs: dict[str, tuple[str, str]] = {}

    def add(self, unit: str, outputs: Mapping[str, str]) -> None:
        """Add the outputs of a unit, key → SHA-256."""
        if unit in self._of:
            return
        if len(self._of) >= self.UNITS:
            for key in self._of.pop(next(iter(self._of))):
                self._outputs.pop(key, None)
        self._of[unit] = [key for key in outputs if key not in self._changing]
        self._outputs.update((key, (unit, outputs[key])) for key in self._of[unit])

    def find(self, key: str) -> Iterator[tuple[str, str]]:
        """Yield the units that made an object, and its SHA-256; of added units the last one."""
        if key in self._outputs:
            yield self._outputs[key]
        elif key.startswith(self._own) and key not in self._changing:
            yield from ((unit, made[key]) for unit, made in self._earlier() if key in made)

    def _earlier(self) -> Iterator[Outputs]:
        for number in count():
            with self._asking:  # threads of a unit may read at the same time
                if number == len(self._asked):
                    if (unit := next(self._further, None)) is None:
                        return
                    self._asked.append(unit)
            yield self._asked[number]

    def check(self, key: str, digest: Callable[[], str]) -> None:
        """Check that an object is as an earlier unit made it, or as the job began with it.

        Args:
            key: key of the object.
            digest: returns the SHA-256 of what is there.

        Raises:
            DamagedOutputError: units made it, and none of them what is there.
            ChangedInputError: it is an input of the job, and another one than at its beginning.
        """
        last, found = "", ""
        for unit, made in self.find(key):
            last, found = unit, found or digest()
            if made == found:
                return
        if last:
            raise DamagedOutputError(last, key)
        if key in self._inputs and self._inputs[key] != digest():
            raise ChangedInputError(key)
