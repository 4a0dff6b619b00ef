"""The last look at all that a job has made, before it is closed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain

from shared.contracts.base import Request
from shared.contracts.jobs import Marker, job_key
from shared.jobs.made import DamagedOutputError
from shared.jobs.markers import Finished
from shared.jobs.reuse import is_whole, lost_outputs, plan_marker, removed_by
from shared.jobs.snapshot import Snapshot
from shared.jobs.stage import FINISH, PLAN
from shared.storage import Store


def check_all(
    store: Store, request: Request, snapshot: Snapshot, done: Finished, own: Marker
) -> None:
    """Check that every unit is done or parked, and that what they made is there as it was made.

    Args:
        store: holds the job and its outputs.
        request: of the job. Objects of its `scratch` may be gone.
        snapshot: of the job, as `finish` began with it.
        done: the markers that `finish` has read.
        own: what `finish` has made.

    Raises:
        DamagedOutputError: units must run again.
    """
    plan, planned = snapshot.plan, plan_marker(store, snapshot.job)
    again: dict[str, str] = {}

    def counted() -> Iterator[Mapping[str, Marker | None]]:
        for segment, markers in zip(plan.every if plan else (), done.markers(), strict=True):
            if plan and len(markers) < segment.count:
                units = {shard.id for shard in plan.shards(segment)}
                missing = sorted(units - markers.keys() - snapshot.parked)
                again.update(dict.fromkeys(missing, f"its marker in job {snapshot.job}"))
            yield markers

    if planned is None and store.exists(key := job_key(snapshot.job, f"done/{PLAN}.json")):
        again[PLAN] = key  # plans of earlier versions have no marker
    first: Mapping[str, Marker | None] = {PLAN: planned}
    gone = removed_by(chain([first], counted())).union(own.outputs, own.removed)
    lost = lost_outputs(store, request, chain([first], done.markers()), gone)
    for key, unit in lost.items():
        if not key.startswith(request.scratch):
            again.setdefault(unit, key)
    changing = frozenset(request.optional_inputs())
    for key in own.outputs:
        if not is_whole(store, key, own, changing):
            again.setdefault(FINISH, key)
    if again:
        unit, *others = again
        raise DamagedOutputError(unit, again[unit], *others)
