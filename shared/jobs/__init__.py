"""Jobs: their state is in the object store, so a lost queue loses no work.

A job is a stage, a request, and shards in phases; shared.contracts.jobs lists its objects. A
unit costs as many requests in a job of a million shards as in one of a hundred: a long plan lies in
segments (`shared.jobs.plan`), and what is done is counted by them (`shared.jobs.snapshot`).

A *unit* is one message to a worker: `plan`, a shard's id, or `finish`. A unit is *settled*
once it is done or parked (given up).

The state follows from the objects (`Snapshot`):

    state               event                                          next state
    none                submit                                         planning
    planning            the plan is done                               running
    planning            the plan is parked, then finish                failed
    running             a shard settles                                running
    running             a phase settles without parked shards          running, next phase
    running             a phase before the last ends with parked       failed, by finish
                        shards
    running             the last phase settles, then finish            done; partial if some of
                                                                       its shards are parked,
                                                                       failed if all are
    running             finish itself is parked                        failed
    planning, running   cancel                                         cancelled
    partial, failed,    submit again                                   planning, or running if
    cancelled                                                          there is a plan; finished
                                                                       units stay done

A job that is done stays done when it is submitted again, unless some of its outputs are gone:
then it runs again what made them. `submit(fresh=True)` deletes any job and starts at planning.

A unit compares what it reads of its job with the hashes in the markers of the plan and of earlier
units; what differs or is gone is made again first (`shared.jobs.made`). If the plan is to be made
again, that is a new submission. Records of other jobs must stay as they were when the job was
submitted; else it fails, and its request is another job from then on. Before a job is done, all
outputs are looked for once more.

The names of a result, such as datasets/<name>, belong to one job (`shared.jobs.names`). A job that
takes over the names of an earlier one keeps the outputs of unchanged shards (`shared.jobs.reuse`).
"""

from shared.contracts.jobs import JobStatus
from shared.jobs.execution import execute
from shared.jobs.leases import Leases, NoLeases, StoreLeases
from shared.jobs.ledger import Identity, Ledger
from shared.jobs.names import NameTakenError
from shared.jobs.plan import StoredPlan, store_plan
from shared.jobs.records import UnreadableRecordError
from shared.jobs.reporting import Reporter
from shared.jobs.runner import run_job
from shared.jobs.snapshot import Snapshot, stage_of
from shared.jobs.stage import Context, Plan, Shard, Stage
from shared.jobs.working import wait_for_world, work

__all__ = [
    "Context",
    "Identity",
    "JobStatus",
    "Leases",
    "Ledger",
    "NameTakenError",
    "NoLeases",
    "Plan",
    "Reporter",
    "Shard",
    "Snapshot",
    "Stage",
    "StoreLeases",
    "StoredPlan",
    "UnreadableRecordError",
    "execute",
    "run_job",
    "stage_of",
    "store_plan",
    "wait_for_world",
    "work",
]
