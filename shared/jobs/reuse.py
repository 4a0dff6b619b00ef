"""Outputs of finished units: which are missing, and which a later job can keep."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from shared.contracts.base import Request
from shared.contracts.jobs import Marker, job_key
from shared.jobs.markers import markers_of
from shared.jobs.plan import Keep, Segment
from shared.jobs.records import READERS, UnreadableRecordError, holds, read_record, write_record
from shared.jobs.snapshot import Snapshot
from shared.jobs.stage import PLAN, Shard
from shared.storage import ObjectNotFoundError, Store


def missing_units(store: Store, job: str, request: Request) -> set[str] | None:
    """Find what a job lacks, segment by segment.

    Objects of the request's `scratch` may be gone: they are needed only to make something missing
    again. Its `optional_inputs` may have been changed by people.

    Args:
        store: holds the job and its outputs.
        job: id of a job.
        request: of the job.

    Returns:
        The finished units whose outputs are not all there as they were made, and the plan if it
        was not finished; None: nothing is missing. The set is empty if only objects of `finish` or
        the plan are missing or are another job's, or units are not finished.
    """
    snapshot = Snapshot(store, job)
    if snapshot.plan is None:
        return set()
    result = snapshot.result
    made = result.outputs if result else {}
    counts = []

    def counted() -> Iterator[dict[str, Marker | None]]:
        for markers in marked_units(snapshot):
            counts.append(sum(marker is not None for marker in markers.values()))
            yield markers

    gone = removed_by(counted()).union(made, result.removed if result else ())
    planned, *shards = counts
    lost = lost_outputs(store, request, marked_units(snapshot), gone)
    with ThreadPoolExecutor(READERS) as pool:
        same = all(list(pool.map(lambda item: holds(store, *item), made.items())))
    lasting = [key for key in lost if not key.startswith(request.scratch)]
    # A marker may be gone because an earlier repair broke off.
    if planned and sum(shards) == snapshot.plan.total and same and not lasting:
        return None
    return set(lost.values()) | (set() if planned else {PLAN})


def removed_by(units: Iterable[Mapping[str, Marker | None]]) -> set[str]:
    """Return the keys of the objects that units have deleted, and that no later one has put.

    Args:
        units: unit → marker, part by part, in the order of the phases; None: it is damaged.
    """
    gone: set[str] = set()
    for markers in units:
        for marker in filter(None, markers.values()):
            gone.update(marker.removed)
            gone.difference_update(marker.outputs)
    return gone


def lost_outputs(
    store: Store,
    request: Request,
    units: Iterable[Mapping[str, Marker | None]],
    gone: Container[str],
) -> dict[str, str]:
    """Find the outputs of finished units that are not there as they were made.

    Args:
        store: holds the outputs.
        request: of the job; its `optional_inputs` may have been changed by people.
        units: unit → marker, part by part, in the order of the phases; None: it is damaged.
        gone: keys of objects that a later unit, or `finish`, has deleted or written over.

    Returns:
        key → the last unit that makes it.
    """
    changing = frozenset(request.optional_inputs())
    lost: dict[str, str] = {}
    with ThreadPoolExecutor(READERS) as pool:
        for markers in units:
            outputs = [
                (key, unit, marker)
                for unit, marker in markers.items()
                if marker
                for key in marker.outputs
                if key not in gone
            ]
            there = pool.map(lambda each: is_whole(store, each[0], each[2], changing), outputs)
            for (key, unit, _), whole in zip(outputs, there, strict=True):
                lost.pop(key, None)
                if not whole:
                    lost[key] = unit
    return lost


def marked_units(snapshot: Snapshot) -> Iterator[dict[str, Marker | None]]:
    """Yield the markers of a job's plan, and of its finished shards, segment by segment."""
    yield {PLAN: plan_marker(snapshot.store, snapshot.job)}
    for segment in snapshot.plan.every if snapshot.plan else ():
        yield markers_of(snapshot, segment)


def keeping(store: Store, job: str, earlier: str | None, changing: Iterable[str]) -> Keep:
    """Return a function that marks those shards of a new plan as done that an earlier job made.

    A shard is kept if it reads the same as the earlier one (see `Shard`), the shards that it
    comes after are kept too, and all its outputs are there as it made them.

    Args:
        store: holds the jobs.
        job: the new job.
        earlier: the job whose names it took over; None: nothing is kept.
        changing: keys that people may change.

    Returns:
        A function that is given each segment of the plan in order, and returns its shards; a kept
        shard that `grows` states what it has read.
    """
    if earlier is None:
        return lambda _, shards: shards
    before = _Earlier(store, job, earlier, frozenset(changing))
    kept: set[str] = set()

    def keep(segment: Segment, shards: tuple[Shard, ...]) -> tuple[Shard, ...]:
        waiting = [shard for shard in shards if kept.issuperset(shard.after)]
        with ThreadPoolExecutor(READERS) as pool:
            found = dict(
                zip([shard.id for shard in waiting],
                    pool.map(lambda shard: before.keep(shard, segment), waiting), strict=True)
            )  # fmt: skip
        kept.update(id for id, shard in found.items() if shard is not None)
        return tuple(found.get(shard.id) or shard for shard in shards)

    return keep


class _Earlier:
    """The jobs before a job, the last one first."""

    def __init__(self, store: Store, job: str, earlier: str, changing: Container[str]) -> None:
        self.store, self.job, self.changing = store, job, changing
        version = Snapshot(store, job).record.version
        self.snapshots: list[Snapshot] = []
        self._removed_by: dict[str, set[str]] = {}
        seen = {job}
        following: str | None = earlier
        while following is not None and following not in seen:
            seen.add(following)
            snapshot = Snapshot(store, following)
            try:
                record, _ = snapshot.record, snapshot.plan
            except (ObjectNotFoundError, ValueError):
                break
            if record.version != version:
                break  # another version may make other outputs of the same input
            self.snapshots.append(snapshot)
            following = record.earlier

    def keep(self, shard: Shard, segment: Segment) -> Shard | None:
        """Mark a shard as done if its outputs can be kept; return it with what it has read."""
        for snapshot in self.snapshots:
            old = _find(snapshot, shard.id)
            if old is not None and shard.id in snapshot.done_in(old[0]):
                return self._keep(shard, segment, snapshot, *old)
            if self.store.exists(job_key(snapshot.job, f"attempts/{shard.id}.json")):
                return None  # this job may have changed the outputs of the jobs before it
        return None

    def _keep(
        self, shard: Shard, segment: Segment, earlier: Snapshot, place: Segment, old: Shard
    ) -> Shard | None:
        if shard.reads is None or old.reads is None:
            return None
        grown = shard.grows and old.reads.items() <= shard.reads.items()
        if old.reads != shard.reads and not grown:
            return None
        marker = _marker(self.store, job_key(earlier.job, place.marker(shard.id)))
        if marker is None:
            return None
        gone = {
            key for key in marker.outputs if not is_whole(self.store, key, marker, self.changing)
        }
        if gone and not gone <= self._removed(earlier):
            return None
        write_record(self.store, job_key(self.job, segment.marker(shard.id)), marker)
        return shard.model_copy(update={"reads": old.reads})

    def _removed(self, earlier: Snapshot) -> set[str]:
        """Return the keys that units of a job removed, because others hold what became of them."""
        if earlier.job not in self._removed_by:
            self._removed_by[earlier.job] = {
                key
                for segment in (earlier.plan.every if earlier.plan else ())
                for marker in markers_of(earlier, segment).values()
                if marker is not None
                for key in marker.removed
            }
        return self._removed_by[earlier.job]


def _find(snapshot: Snapshot, unit: str) -> tuple[Segment, Shard] | None:
    try:
        return snapshot.plan.find(unit) if snapshot.plan else None
    except KeyError:
        return None


def _marker(store: Store, key: str) -> Marker | None:
    """Read the marker of a finished unit; None: it is damaged, and the unit must run again."""
    try:
        return read_record(store, key, Marker)
    except (UnreadableRecordError, ObjectNotFoundError):
        return None


def plan_marker(store: Store, job: str) -> Marker | None:
    """Read the marker of a job's plan; None: it is damaged, or there is none."""
    return _marker(store, job_key(job, f"done/{PLAN}.json"))


def is_whole(store: Store, key: str, marker: Marker, changing: Container[str]) -> bool:
    """Say whether an output is there as its unit made it; what people may change need only be."""
    try:
        same = store.stat(key).tag == marker.tags.get(key)
    except ObjectNotFoundError:
        return False
    # The same bytes get another tag where a unit ran twice, or the store was copied.
    return same or key in changing or holds(store, key, marker.outputs[key])
