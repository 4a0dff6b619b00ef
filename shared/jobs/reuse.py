"""Outputs of finished units: which are missing, and which a later job can keep."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from shared.contracts.jobs import Marker, job_key
from shared.jobs.snapshot import Snapshot, UnreadableRecordError, read_record
from shared.jobs.stage import PLAN, Plan, Shard
from shared.storage import ObjectNotFoundError, Store, sha256

READERS = 16
"""Threads that ask the store for objects."""


def missing_units(store: Store, job: str, scratch: tuple[str, ...]) -> set[str] | None:
    """Find what a job lacks.

    Args:
        store: holds the job and its outputs.
        job: id of a job.
        scratch: prefixes of objects that are needed only to make something missing again.

    Returns:
        The finished units whose outputs are not all there, and the plan if it was not finished;
        None: nothing is missing. The set is empty if only objects of `finish` or the plan are
        missing or are another job's, or units are not finished.
    """
    snapshot = Snapshot(store, job)
    if snapshot.plan is None:
        return set()
    units = sorted(snapshot.done)
    with ThreadPoolExecutor(READERS) as pool:
        read = pool.map(lambda unit: _marker(store, job, unit), units)
        markers = {unit: marker for unit, marker in zip(units, read, strict=True) if marker}
        result = snapshot.result
        finished = dict(result.outputs) if result else {}
        removed = set(result.removed if result else ())
        removed |= {key for marker in markers.values() for key in marker.removed}
        needed = {
            key: unit for unit, marker in markers.items() for key in marker.outputs
            if key not in removed
        }  # fmt: skip
        lasting = [key for key in needed if not key.startswith(scratch)]
        same = pool.map(lambda item: _is(store, *item), finished.items())
        # A marker may be gone because an earlier repair broke off.
        planned = {PLAN, *(shard.id for shard in snapshot.plan.shards)}
        unmarked = planned - markers.keys()
        if not unmarked and all(list(same)) and not _absent(store, lasting, pool):
            return None
        return ({PLAN} & unmarked) | {needed[key] for key in _absent(store, needed, pool)}


def keep_unchanged(store: Store, job: str, earlier: str | None, plan: Plan) -> Plan:
    """Mark those shards of a new plan as done whose outputs an earlier job has made.

    A shard is kept if it reads the same as the earlier one (see `Shard`), the shards that it
    comes after are kept too, and all its outputs are there.

    Args:
        store: holds the jobs.
        job: the new job.
        earlier: the job whose names it took over; None: nothing is kept.
        plan: the new plan, not yet stored.

    Returns:
        The plan; a kept shard that `grows` states what it has read.
    """
    if earlier is None:
        return plan
    before = _Earlier(store, job, earlier)
    kept: set[str] = set()
    phases = []
    with ThreadPoolExecutor(READERS) as pool:
        for phase in plan.phases:
            waiting = [shard for shard in phase if kept.issuperset(shard.after)]
            found = dict(zip([shard.id for shard in waiting], pool.map(before.keep, waiting),
                             strict=True))  # fmt: skip
            kept |= {id for id, shard in found.items() if shard is not None}
            phases.append(tuple(found.get(shard.id) or shard for shard in phase))
    return Plan(phases=tuple(phases))


class _Earlier:
    """The jobs before a job, the last one first."""

    def __init__(self, store: Store, job: str, earlier: str) -> None:
        self.store, self.job = store, job
        version = Snapshot(store, job).record.version
        self.snapshots: list[Snapshot] = []
        self.shards: list[dict[str, Shard]] = []
        seen = {job}
        following: str | None = earlier
        while following is not None and following not in seen:
            seen.add(following)
            snapshot = Snapshot(store, following)
            try:
                record, plan, _ = snapshot.record, snapshot.plan, snapshot.done
            except (ObjectNotFoundError, ValueError):
                break
            if record.version != version:
                break  # another version may make other outputs of the same input
            self.snapshots.append(snapshot)
            self.shards.append({shard.id: shard for shard in plan.shards} if plan else {})
            following = record.earlier

    def keep(self, shard: Shard) -> Shard | None:
        """Mark a shard as done if its outputs can be kept; return it with what it has read."""
        for snapshot, shards in zip(self.snapshots, self.shards, strict=True):
            old = shards.get(shard.id)
            if shard.id in snapshot.done and old is not None:
                return self._keep(shard, old, snapshot.job)
            if self.store.exists(job_key(snapshot.job, f"attempts/{shard.id}.json")):
                return None  # this job may have changed the outputs of the jobs before it
        return None

    def _keep(self, shard: Shard, old: Shard, earlier: str) -> Shard | None:
        if shard.reads is None or old.reads is None:
            return None
        grown = shard.grows and old.reads.items() <= shard.reads.items()
        if old.reads != shard.reads and not grown:
            return None
        marker = _marker(self.store, earlier, shard.id)
        if marker is None:
            return None
        gone = {key for key in marker.outputs if not self.store.exists(key)}
        if gone and not gone <= self._removed_after(shard.id, earlier):
            return None
        self.store.put_json(job_key(self.job, f"done/{shard.id}.json"), marker)
        return shard.model_copy(update={"reads": old.reads})

    def _removed_after(self, unit: str, earlier: str) -> set[str]:
        """Return the keys that the units after a unit removed, which hold what became of them."""
        at = next(i for i, snapshot in enumerate(self.snapshots) if snapshot.job == earlier)
        heirs = [other.id for other in self.shards[at].values() if unit in other.after]
        markers = (_marker(self.store, earlier, heir) for heir in heirs)
        return {key for marker in markers if marker is not None for key in marker.removed}


def _marker(store: Store, job: str, unit: str) -> Marker | None:
    """Read the marker of a finished unit; None: it is damaged, and the unit must run again."""
    try:
        return read_record(store, job_key(job, f"done/{unit}.json"), Marker)
    except UnreadableRecordError:
        return None


def _absent(store: Store, keys: Iterable[str], pool: ThreadPoolExecutor) -> list[str]:
    keys = list(keys)
    return [key for key, there in zip(keys, pool.map(store.exists, keys), strict=True) if not there]


def _is(store: Store, key: str, digest: str) -> bool:
    try:
        return sha256(store.get(key)) == digest
    except ObjectNotFoundError:
        return False
