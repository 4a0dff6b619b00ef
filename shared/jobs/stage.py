"""A stage: the pure work of a service on the object store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, ClassVar, Generic, TypeVar

from pydantic import Field, JsonValue

from shared.contracts.base import Contract, Name, Request
from shared.contracts.tenants import LOCAL
from shared.device import choose_device
from shared.errors import CancelledError
from shared.jobs.made import Made
from shared.storage import (
    ObjectNotFoundError,
    Store,
    StoreView,
    content_hash,
    sha256,
    sha256_file,
    sha256_stream,
)

R = TypeVar("R", bound=Request)

PLAN = "plan"
FINISH = "finish"


class Shard(Contract):
    """One piece of a job's work; its outputs follow from the request and these arguments."""

    id: Name
    args: dict[str, JsonValue] = Field(default_factory=dict)
    reads: dict[str, str] | None = Field(
        None,
        description="name → hash of everything that the outputs follow from; a later job keeps "
        "the outputs of a shard that reads the same. None: never keep them",
    )
    after: tuple[Name, ...] = Field(
        (), description="shards of earlier phases whose outputs it reads; they must be kept too"
    )
    grows: bool = Field(
        False, description="keep the outputs also if a later job only adds to what the shard reads"
    )
    size: float = Field(0.0, description="how much work it is; of a segment, large shards go first")


@dataclass(frozen=True)
class Plan:
    """Phases of shards. Shards of a phase run in any order; phases run one after another.

    Attributes:
        phases: the shards of each phase. A sequence of them may be in any order. An iterator, for
            more shards than fit in memory, yields them in ascending order of their ids.
    """

    phases: Sequence[Iterable[Shard]]


class RecordingStore(StoreView):
    """A store that records the SHA-256 and the tag of every object put through it.

    Attributes:
        outputs: key of each object → SHA-256.
        tags: key of each object → tag (see `Store.stat`).
        removed: keys of objects that were deleted through it, and that it had not put.
        made: outputs of earlier units, which are checked when they are read.

    Args:
        inner: the store.
        check: called before and after every change; raises `CancelledError` if the unit's job has
            ended or was submitted again, so that a late worker changes nothing more.
        take_back: called with what was put meanwhile, key → SHA-256.
    """

    def __init__(
        self,
        inner: Store,
        check: Callable[[], None],
        take_back: Callable[[Mapping[str, str]], None] = lambda _: None,
    ) -> None:
        super().__init__(inner)
        self.outputs: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.removed: set[str] = set()
        self.made = Made()
        self._whole: set[str] = set()
        self._check = check
        self._take_back = take_back

    def get(self, key: str) -> bytes:
        """Return the object's bytes.

        Raises:
            ObjectNotFoundError: the store holds no such object.
            DamagedOutputError: an earlier unit made another object under this key.
        """
        data = super().get(key)
        self._compare(key, lambda: sha256(data))
        return data

    def local(self, key: str) -> Path:
        """Return a local file with the object's content. Raises as `get`."""
        path = super().local(key)
        self._compare(key, lambda: content_hash(path))
        return path

    def open(self, key: str, start: int = 0) -> AbstractContextManager[IO[bytes]]:
        """Read the object as a stream. Raises as `get`."""

        def digest() -> str:
            with self.inner.open(key) as stream:
                return sha256_stream(stream)

        self._compare(key, digest)
        return super().open(key, start)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Return a part of the object. Raises as `get`."""
        if key not in self._whole:
            self._compare(key, lambda: content_hash(super(RecordingStore, self).local(key)))
            self._whole.add(key)  # many parts may be read
        return super().read_range(key, start, length)

    def _compare(self, key: str, digest: Callable[[], str]) -> None:
        if key not in self.outputs:
            self.made.check(key, digest)

    def put(self, key: str, data: bytes) -> str:
        self._check()
        tag = super().put(key, data)
        self._keep(key, sha256(data), tag)
        return tag

    def put_file(self, key: str, path: Path) -> str:
        self._check()
        tag = super().put_file(key, path)
        self._keep(key, sha256_file(path), tag)
        return tag

    def adopt(self, key: str, digest: str) -> bool:
        """Count an object as put, if an earlier start of this unit has put it.

        Returns:
            Whether it is there with this SHA-256.
        """
        try:
            tag = self.stat(key).tag
            with self.inner.open(key) as stream:
                whole = sha256_stream(stream) == digest
        except ObjectNotFoundError:
            return False
        if whole:
            self.outputs[key], self.tags[key] = digest, tag
        return whole

    def delete(self, key: str) -> None:
        self._check()
        super().delete(key)
        self.tags.pop(key, None)
        if self.outputs.pop(key, None) is None:
            self.removed.add(key)

    def _keep(self, key: str, digest: str, tag: str) -> None:
        """Record an object that was put, unless it came too late."""
        try:
            self._check()
        except CancelledError:
            self._take_back({key: digest})
            raise
        self.outputs[key], self.tags[key] = digest, tag
        self.removed.discard(key)


class Context:
    """The store, the device and the progress report of a running unit.

    Attributes:
        store: the object store; it records each put for the unit's marker.
        threads: number of CPU threads, which is set before the unit runs; it decides how sums
            are rounded.
        tenant: name of the tenant that owns the store.

    Args:
        device: 'cpu', 'cuda', 'cuda:N' or 'auto'.
        open_root: opens the store's root, of which `store` is the tenant's part; None: `store` is
            the root.
    """

    def __init__(
        self,
        store: Store,
        *,
        threads: int,
        device: str,
        report: Callable[[int, int, str], None],
        check: Callable[[], None] = lambda: None,
        take_back: Callable[[Mapping[str, str]], None] = lambda _: None,
        tenant: str = LOCAL,
        open_root: Callable[[], Store] | None = None,
    ) -> None:
        self.store = RecordingStore(store, check, take_back)
        self.tenant = tenant
        self._open_root = open_root
        self._check = check
        self.threads = threads
        self._device = device
        self._report = report

    @cached_property
    def device(self) -> str:
        """'cpu', 'cuda' or 'cuda:N'; 'auto' is settled here, as only some stages load torch."""
        return choose_device(self._device)

    @cached_property
    def root(self) -> Store:
        """The root of the store, which holds what all tenants share: Triton's models."""
        if self._open_root is None:
            return self.store
        return RecordingStore(self._open_root(), self._check)

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Report the unit's progress. Raises `CancelledError` if its job was cancelled."""
        self._report(done, total, note)


class Stage(ABC, Generic[R]):
    """The work of one service.

    A stage keeps no state between calls: a unit takes its input from the request, its
    shard and the store. `run` must be deterministic and idempotent.
    """

    name: ClassVar[str]
    request: type[R]

    @abstractmethod
    def plan(self, request: R, context: Context) -> Plan:
        """Cut the request into shards. Raises `InputError` if that is impossible."""

    @abstractmethod
    def run(self, request: R, shard: Shard, context: Context) -> dict[str, Any]:
        """Do one shard; return a JSON summary, which `finish` receives."""

    @abstractmethod
    def finish(
        self, request: R, done: Mapping[str, dict[str, Any]], context: Context
    ) -> dict[str, Any]:
        """Sum up the finished shards and return the job's result, as plain JSON.

        Args:
            request: the job's request.
            done: shard id → the summary that `run` returned, in the order of the plan. It is read
                from the store as it is gone through, so a long one is best gone through in order.
            context: store, device and progress report.
        """
