"""`--dry-run`: what a request would do, without writing anything to the store."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from heterotissue.cohort_tables import preview_cohort
from heterotissue.embedding_cost import embedding_line
from heterotissue.evaluation_cost import segmenter_line
from heterotissue.job_report import name_of, result_key, short
from heterotissue.progress import duration, say
from heterotissue.stages import load_stage
from shared.computing import prepare
from shared.contracts.base import Request
from shared.contracts.embed import EmbedRequest
from shared.contracts.evaluate import EvaluateRequest
from shared.contracts.ingest import IngestRequest
from shared.contracts.jobs import State
from shared.errors import InputError
from shared.jobs import (
    Context,
    Ledger,
    Shard,
    Snapshot,
    StoredPlan,
    UnreadableRecordError,
    store_plan,
)
from shared.jobs.markers import markers_of
from shared.jobs.reuse import keeping
from shared.models import pinned
from shared.settings import Settings
from shared.storage import ObjectNotFoundError, OverlayStore, Store

COMPARED = {
    "embed": ("encoder",),
    "cluster": ("encoder", "k"),
    "synthesize": ("model", "version", "steps", "condition"),
    "deploy": ("model", "engine"),
}
"""Stage → fields that an earlier request must share, so that its times say something."""

MAX_UNITS = 200
"""Greatest number of earlier units that are read for an estimate."""


def dry_run(
    store: Store,
    request: Request,
    config: Settings,
    *,
    fresh: bool = False,
    replace: bool = False,
) -> State:
    """Print a request's main fields, its plan, and its time and storage where they are known.

    Args:
        store: a store whose writes are kept apart.
        request: the request.
        config: settings of the process that would run it.
        fresh: plan all units, even if some are done.
        replace: take the name of the result from another request.

    Returns:
        The state in which the job would end, as far as that is seen: done, partial if something
        would be skipped, or failed if everything would.

    Raises:
        InputError: the request would be refused.
    """
    prepare(config.threads)  # before torch is imported
    request = pinned(store, request)
    ledger, plain = Ledger(store), request.model_dump(mode="json")
    job = ledger.submit(request, fresh=fresh, replace=replace)
    say(f"{request.stage}: dry run of '{name_of(request.stage, plain)}'; nothing is written")
    for name, value in _changed_fields(request):
        say(f"  {name}: {value}")
    skipped = preview_cohort(store, request) if isinstance(request, IngestRequest) else 0
    context = Context(store, threads=config.threads, device=config.device, report=lambda *_: None)
    stage = load_stage(request.stage)
    if not ledger.is_open(job):
        say(f"  this request is done already ({job}); the command would end at once")
        return ledger.status(job).state
    earlier = ledger.snapshot(job).record.earlier
    keep = keeping(store, job, earlier, request.optional_inputs())
    plan = store_plan(OverlayStore(store), job, stage.plan(request, context), keep)
    if isinstance(request, EmbedRequest) and request.imported is not None:
        missing = [shard.id for shard in plan if "file" not in shard.args]
        skipped = len(missing)
        if missing:
            say(f"  {skipped} slides have no file of features, and are skipped: {short(missing)}")
        say("  files of features are read only by the import itself, which may skip some")
    for number in range(len(plan.counts)):
        kinds = Counter(_kind(request.stage, shard) for shard in plan.phase(number))
        parts = ", ".join(f"{count} × {kind}" for kind, count in kinds.items())
        say(f"  phase {number + 1}: {parts}")
    snapshot, units = Snapshot(store, job, plan), 0
    waiting: Counter[str] = Counter()  # kind of unit → steps or images
    for segment in plan.every:
        done = snapshot.done_in(segment)
        for shard in plan.shards(segment):
            if shard.id not in done:
                units += 1
                waiting[_kind(request.stage, shard)] += _weight(shard)
    say(f"  to do: {units} of {plan.total} units, as job {job}")
    if isinstance(request, EvaluateRequest) and (line := segmenter_line(store, request, config)):
        say(f"  {line}")
    if isinstance(request, EmbedRequest) and (line := embedding_line(store, request, config)):
        say(f"  {line}")
    say(f"  {_cost_line(store, request, waiting)}")
    if key := result_key(request.stage, plain):
        say(f"  result: {store.url.rstrip('/')}/{key}")
    if skipped:
        return "partial" if skipped < plan.total else "failed"
    return "done"


def dry_run_all(
    store: Store, requests: list[Request], config: Settings, *, replace: bool = False
) -> list[State]:
    """Print the requests of a series; one that reads what an earlier one makes has no plan yet.

    Returns:
        The states of `dry_run`, of the requests that have a plan.
    """
    states: list[State] = []
    for number, request in enumerate(requests):
        try:
            states.append(dry_run(store, request, config, replace=replace))
        except InputError as error:
            if number == 0:
                raise
            say(f"  its plan is made after the earlier requests: {error}")
    return states


def _changed_fields(request: Request) -> Iterator[tuple[str, str]]:
    """Yield the fields that differ from their defaults, in one line each."""
    for name, value in request.model_dump(mode="json", exclude_defaults=True).items():
        if name == "slides":
            yield name, f"{len(value)}"
        elif name.startswith("imported_"):
            yield name, f"of {len(value)} files"
        elif name == "classes":
            yield name, ", ".join(item["name"] for item in value["items"])
        elif name == "recipe":
            yield name, f"{value['name']}, {value['size']} px"
        else:
            yield name, short(value)


def _kind(stage: str, shard: Shard) -> str:
    """Return the kind of a shard: shards of a kind take about as long as each other."""
    if stage in {"ingest", "embed"}:
        return shard.id if shard.id == "fit-encoder" else "slide"
    return shard.id.partition("-")[0]


def _weight(shard: Shard) -> int:
    """Return the number of steps or images of a shard, or 1."""
    start, stop = shard.args.get("start"), shard.args.get("stop")
    return max(1, int(str(stop)) - int(str(start))) if stop is not None else 1


@dataclass
class _Cost:
    """What earlier units of a kind cost in all."""

    weight: int = 0
    units: int = 0
    seconds: float = 0.0
    stored: int = 0


def _cost_line(store: Store, request: Request, waiting: Mapping[str, int]) -> str:
    known = _earlier_costs(store, request)
    seconds, stored, unknown = 0.0, 0.0, set()
    for kind, weight in waiting.items():
        if cost := known.get(kind):
            seconds += cost.seconds / cost.weight * weight
            stored += cost.stored / cost.weight * weight
        else:
            unknown.add(kind)
    if waiting and len(unknown) == len(waiting):
        return "time and storage: not known, because this store has no earlier job like it"
    units = sum(cost.units for cost in known.values())
    least = f", without {', '.join(sorted(unknown))}, which was not run yet" if unknown else ""
    return (
        f"about {duration(seconds)} of one worker's time and {stored / 1e6:,.1f} MB, by what "
        f"earlier units of this store took ({units}){least}"
    )


def _earlier_costs(store: Store, request: Request) -> dict[str, _Cost]:
    """Return what units of earlier jobs of the stage, with the same main fields, cost by kind."""
    costs: dict[str, _Cost] = defaultdict(_Cost)
    for job, plan in _earlier_jobs(store, request):
        snapshot = Ledger(store).snapshot(job)
        for segment in plan.every:
            markers = markers_of(snapshot, segment)
            for shard in plan.shards(segment):
                if (marker := markers.get(shard.id)) is None:
                    continue
                cost = costs[_kind(request.stage, shard)]
                cost.weight += _weight(shard)
                cost.units += 1
                cost.seconds += marker.seconds
                cost.stored += sum(_size(store, key) for key in marker.outputs)
                if sum(each.units for each in costs.values()) >= MAX_UNITS:
                    return costs
    return costs


def _earlier_jobs(store: Store, request: Request) -> Iterator[tuple[str, StoredPlan]]:
    ledger, own = Ledger(store), request.model_dump(mode="json")
    fields = COMPARED.get(request.stage, ())
    for job in islice(ledger.jobs(), 10_000):
        snapshot = ledger.snapshot(job)
        try:
            record, plan = snapshot.record, snapshot.plan
        except UnreadableRecordError:
            continue
        if record.stage != request.stage or plan is None:
            continue
        alike = all(record.request.get(field) == own[field] for field in fields)
        if alike and _recipe(record.request) == _recipe(own):
            yield job, plan


def _recipe(request: Mapping[str, Any]) -> Any:
    recipe = request.get("recipe") or {}
    return recipe.get("name"), recipe.get("size")


def _size(store: Store, key: str) -> int:
    try:
        return store.size(key)
    except ObjectNotFoundError:
        return 0
