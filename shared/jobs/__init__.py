"""Jobs: the object store is the truth, the queue is only a hint.

A job is a stage, a request, and shards. Its objects:

    jobs/<id>/request.json        stage and request
    jobs/<id>/plan.json           phases of shards; a phase starts when the one before is done
    jobs/<id>/attempts/<unit>.json  starts and errors so far
    jobs/<id>/done/<unit>.json    marker: outputs with SHA-256, timings; written last
    jobs/<id>/failed/<unit>.json  a parked unit's error
    jobs/<id>/cancelled
    jobs/<id>/result.json
    open-jobs/<id>                present until there is a result; the reconciler's list

A *unit* is what a worker is handed: `plan`, a shard's id, or `finish`.
"""

from shared.contracts.jobs import JobStatus
from shared.jobs.execution import execute
from shared.jobs.leases import Leases, NoLeases
from shared.jobs.ledger import Ledger, stage_of
from shared.jobs.reporting import Reporter
from shared.jobs.runner import run_job
from shared.jobs.stage import Context, Plan, Shard, Stage

__all__ = [
    "Context",
    "JobStatus",
    "Leases",
    "Ledger",
    "NoLeases",
    "Plan",
    "Reporter",
    "Shard",
    "Stage",
    "execute",
    "run_job",
    "stage_of",
]
