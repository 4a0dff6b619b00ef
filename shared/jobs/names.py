"""Names in the store and the jobs that they belong to: no result is replaced in silence.

A request states the names that its result takes (`Request.products`). They belong to its job
from submission on. Another job gets them if it revises the first (`Request.revises`), if the
first has ended without a result and none was there before, or if a person asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from shared.contracts.base import Request
from shared.contracts.jobs import WITHOUT_RESULT, Claim, JobStatus, job_key
from shared.errors import InputError
from shared.jobs.records import JobNotFoundError, UnreadableRecordError, holds
from shared.jobs.reuse import plan_marker
from shared.jobs.snapshot import Snapshot
from shared.storage import DamagedObjectError, ObjectNotFoundError, Store

SUBMITTING = timedelta(minutes=1)
"""Time within which a job that has taken a name has its record too."""


class NameTakenError(InputError):
    """A name in the store belongs to the job of another request.

    Attributes:
        wrong: what is wrong, without what to do.
    """

    def __init__(self, wrong: str) -> None:
        super().__init__(f"{wrong}: choose another name, or replace it with --replace")
        self.wrong = wrong


def owner(store: Store, product: str) -> str | None:
    """Return the job that a name, such as 'datasets/<name>', belongs to.

    None: it belongs to no job; the empty text: the record of its owner cannot be read.
    """
    try:
        return store.get_model(_key(product), Claim).job
    except ObjectNotFoundError:
        return None
    except DamagedObjectError:
        return ""


def names_of(store: Store, job: str) -> list[str]:
    """List the names that belong to a job."""
    keys = store.list("names/")
    every = [key.removeprefix("names/").removesuffix(".json") for key in keys]
    return [name for name in every if owner(store, name) == job]


def restore(store: Store, products: Iterable[str], job: str) -> None:
    """Take the names of an open job again whose records are lost or damaged."""
    claim = Claim(job=job).model_dump_json().encode()
    for name in products:
        if (other := owner(store, name)) is None:
            store.create(_key(name), claim)
        elif not other:
            store.put(_key(name), claim)


def making(store: Store, product: str) -> str | None:
    """Return the open job whose result takes a name, whatever the record of the name says."""
    for key in store.list("open-jobs/"):
        job = key.removeprefix("open-jobs/")
        with suppress(JobNotFoundError, UnreadableRecordError):
            if product in Snapshot(store, job).record.products:
                return job
    return None


def release(store: Store, product: str) -> None:
    """Free a name whose result was deleted."""
    store.delete(_key(product))


@dataclass(frozen=True)
class Claims:
    """The names of a request, and the job that wants them."""

    store: Store
    request: Request
    job: str

    def owned(self) -> bool:
        """Say whether all names belong to the job."""
        return all(owner(self.store, name) == self.job for name in self.request.products())

    def require(self) -> None:
        """Raise `InputError` if another job has taken the names of this job's result.

        Names whose records are lost or damaged are `restore`d by others: workers may not write
        them.
        """
        owners = {owner(self.store, name) for name in self.request.products()}
        if owners - {self.job, None, ""}:
            raise InputError(
                f"another request has taken {', '.join(self.request.products())}: choose another "
                "name, or submit this request again with --replace"
            )

    def earlier(self, *, replace: bool) -> tuple[str, ...]:
        """Return the other jobs that the names belong to.

        Args:
            replace: the names may be taken from any other job.

        Raises:
            NameTakenError: a name belongs to a job from which it may not be taken.
        """
        earlier: dict[str, None] = {}
        for name in self.request.products():
            other = self._holder(name)
            if other is None and not replace and _occupied(self.store, name):
                raise NameTakenError(
                    f"{name} is in the store already, and no job is known to have made it"
                )
            if other is not None and other != self.job:
                if not replace:
                    self._check(name, other)
                earlier |= {other: None} if other else {}
        return tuple(earlier)

    def take(self) -> None:
        """Give all names to the job, after `earlier` has allowed it.

        Raises:
            NameTakenError: another job has taken a free name meanwhile.
        """
        claim = Claim(job=self.job)
        for name in self.request.products():
            other = owner(self.store, name)
            if other is None:
                if not self.store.create(_key(name), claim.model_dump_json().encode()):
                    self._check(name, owner(self.store, name) or "")
            elif other != self.job:
                self.store.put_json(_key(name), claim)

    def _holder(self, name: str) -> str | None:
        """Return the job that holds a name, as `owner` does.

        Jobs that ended before a unit was done do not count, but the first one holds what its plan
        has written. Where the record of the owner is gone or damaged, this job holds what it has
        made.
        """
        other, seen = owner(self.store, name), {self.job}
        if not other and _occupied(self.store, name):  # which a job may still be making
            other = making(self.store, name) or other
        while other and other not in seen:
            seen.add(other)
            snapshot = Snapshot(self.store, other)
            try:
                if snapshot.result is None or snapshot.result.state not in WITHOUT_RESULT:
                    return other
                plan, before = snapshot.plan, snapshot.record.earlier
                if plan and (before is None or any(map(snapshot.count_done, plan.every))):
                    return other
                other = before
            except (JobNotFoundError, UnreadableRecordError):
                return other
        return other or (self.job if self._made(name) else other)

    def _made(self, name: str) -> bool:
        """Say whether what lies under a name was made by this job."""
        snapshot = Snapshot(self.store, self.job)
        try:
            result, plan = snapshot.result, snapshot.plan
        except UnreadableRecordError:
            return False
        if result is None and plan is not None:
            return True
        planned = plan_marker(self.store, self.job)
        made = result.outputs if result and result.outputs else planned.outputs if planned else {}
        own = {key: digest for key, digest in made.items()
               if key == f"{name}.json" or key.startswith(f"{name}/")}  # fmt: skip
        return bool(own) and all(holds(self.store, key, digest) for key, digest in own.items())

    def _check(self, name: str, other: str) -> None:
        """Raise `NameTakenError` unless this job may take the name of another without asking."""
        if other == self.job:
            return
        if not other:
            raise NameTakenError(_taken(name, other, None))
        snapshot = Snapshot(self.store, other)
        if _left_over(self.store, name, other):
            return
        differing: list[str] = []
        try:
            status = snapshot.status()
            if not _has_had_result(snapshot):
                return
            if status.stage == self.request.stage:
                asked = type(self.request).model_validate(snapshot.record.request)
                if self.request.revises(asked):
                    return
                differing = _differences(asked.model_dump(), self.request.model_dump())
        except (JobNotFoundError, ValueError):  # it is deleted, or of another version
            status = None
        raise NameTakenError(_taken(name, other, status, differing))


def abandon(store: Store, job: str) -> None:
    """Delete what lies under the names that a job still has, and free them.

    This is for a job whose other names were taken over: half of a result is none.
    """
    for name in names_of(store, job):
        store.delete(f"{name}.json")
        store.delete_prefix(f"{name}/")
        release(store, name)


def _has_had_result(snapshot: Snapshot) -> bool:
    """Say whether a job, or one before it under its names, has ended with a result, or may do."""
    seen: set[str] = set()
    while True:
        seen.add(snapshot.job)
        if snapshot.status().state not in WITHOUT_RESULT:
            return True
        earlier = snapshot.record.earlier
        if earlier is None or earlier in seen:
            return False
        snapshot = Snapshot(snapshot.store, earlier)


def _differences(old: Any, new: Any, place: str = "") -> list[str]:
    """List where two requests, as plain values, differ: 'images was 24 and is 40'."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            text
            for key in dict.fromkeys([*new, *old])
            for text in _differences(old.get(key), new.get(key), f"{place}.{key}".lstrip("."))
        ]
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        if len(old) != len(new):
            return [f"{place} had {len(old):,} entries and has {len(new):,}"]
        return [
            text
            for number, pair in enumerate(zip(old, new, strict=True), 1)
            for text in _differences(*pair, f"{place} {number}")
        ]
    return [] if old == new else [f"{place} was {_short(old)} and is {_short(new)}"]


def _short(value: Any) -> str:
    text = "not given" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _taken(name: str, other: str, status: JobStatus | None, differing: Sequence[str] = ()) -> str:
    if not other:
        return f"{name} is in the store, and the record of the job that made it is damaged"
    doing = "is being made" if status and status.state in {"planning", "running"} else "was made"
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    how = f" ({'; '.join(differing[:3])}{more})" if differing else ""
    return f"{name} {doing} by job {other} from another request{how}"


def _occupied(store: Store, product: str) -> bool:
    return store.exists(f"{product}.json") or any(store.list(f"{product}/"))


def _left_over(store: Store, product: str, job: str) -> bool:
    """Say whether a result was deleted, and that broke off before its name was free."""
    if store.exists(job_key(job, "request.json")) or _occupied(store, product):
        return False
    claimed = dict(store.dates(_key(product))).get(_key(product))
    return claimed is not None and datetime.now(UTC) - claimed > SUBMITTING


def _key(product: str) -> str:
    return f"names/{product}.json"
