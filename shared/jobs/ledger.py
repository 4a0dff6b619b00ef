"""The ledger: a job's objects in the store, and the status computed from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from shared.contracts.base import Request
from shared.contracts.jobs import JobStatus, State
from shared.errors import InputError
from shared.jobs.stage import FINISH, PLAN, Plan
from shared.storage import ObjectNotFoundError, ObjectStore, sha256


class JobNotFoundError(InputError):
    """The store holds no such job, or holds it no longer."""


def stage_of(job: str) -> str:
    """Name of a job's stage, by the job's id."""
    return job.rpartition(".")[2].rpartition("-")[0]


class Ledger:
    """Reads and writes the objects of jobs in one store.

    Args:
        store: where the jobs are.
        owner: the tenant whose store it is, if it is one's; their ids start with it, so that
            jobs of several tenants can share a queue.
    """

    def __init__(self, store: ObjectStore, owner: str = "") -> None:
        self.store = store
        self.owner = owner

    @staticmethod
    def key(job: str, name: str) -> str:
        """Key of one of a job's objects."""
        return f"jobs/{job}/{name}"

    def identify(self, request: Request) -> str:
        """Return the job's id: owner, stage, and a hash of the request and its inputs' content.

        Raises:
            InputError: an input that the request builds on is not in the store.
        """
        inputs = {}
        for key in request.inputs():
            try:
                inputs[key] = sha256(self.store.get(key))
            except ObjectNotFoundError as error:
                raise InputError(
                    f"{request.stage} needs {key}, which {self.store.url} does not hold: "
                    "run the stage that makes it first, or check the name"
                ) from error
        identity = {"request": request.model_dump(mode="json"), "inputs": inputs}
        digest = sha256(json.dumps(identity, sort_keys=True).encode())
        own = f"{request.stage}-{digest[:16]}"
        return f"{self.owner}.{own}" if self.owner else own

    def submit(self, request: Request, *, fresh: bool = False) -> str:
        """Record a job, before anything is queued, and return its id.

        The same request on the same inputs is the same job: if it is done, it stays
        done; what failed or was cancelled is tried again. `fresh` does it all again.
        """
        job = self.identify(request)
        result = self._optional(job, "result.json")
        if fresh:
            self.store.delete_prefix(self.key(job, ""))
        elif result is not None:
            if result["state"] == "done":
                return job
            self._forget_end(job)
        record = {"stage": request.stage, "request": request.model_dump(mode="json")}
        self.store.put_json(self.key(job, "request.json"), record)
        self.store.put(f"open-jobs/{job}", b"")
        return job

    def reopen(self, job: str, shards: str) -> None:
        """Have the shards whose ids start with `shards` done anew, and what sums them up.

        For what a person has changed since; the shards before them stay done.
        """
        self._forget_end(job)
        self.store.delete_prefix(self.key(job, f"done/{shards}"))
        self.store.put(f"open-jobs/{job}", b"")

    def _forget_end(self, job: str) -> None:
        """Forget how a job ended and what failed in it; what is done stays done."""
        for name in ("result.json", "cancelled", "attempts/", "failed/"):
            self.store.delete_prefix(self.key(job, name))

    def open_jobs(self) -> list[str]:
        """Ids of the jobs that have no result yet."""
        return [key.removeprefix("open-jobs/") for key in self.store.list("open-jobs/")]

    def is_open(self, job: str) -> bool:
        """Say whether there is such a job, without a result yet."""
        return self.store.exists(f"open-jobs/{job}")

    def jobs(self) -> Iterator[str]:
        """Ids of all jobs, sorted."""
        return self.store.folders("jobs/")

    def stage(self, job: str) -> str:
        """Name of the stage that a job belongs to."""
        return str(self._required(job)["stage"])

    def request(self, job: str) -> dict[str, Any]:
        """The job's request, as plain JSON."""
        request: dict[str, Any] = self._required(job)["request"]
        return request

    def _required(self, job: str) -> dict[str, Any]:
        record = self._optional(job, "request.json")
        if record is None:
            raise JobNotFoundError(f"{self.store.url} holds no job {job!r}: 'htd jobs' lists them")
        return record

    def _optional(self, job: str, name: str) -> dict[str, Any] | None:
        try:
            value: dict[str, Any] = self.store.get_json(self.key(job, name))
        except ObjectNotFoundError:
            return None
        return value

    def plan(self, job: str) -> Plan | None:
        """The job's plan, or None while there is none."""
        try:
            return self.store.get_model(self.key(job, "plan.json"), Plan)
        except ObjectNotFoundError:
            return None

    def result(self, job: str) -> dict[str, Any] | None:
        """The job's result record (`state`, `result`, `failed`), or None while it is open."""
        return self._optional(job, "result.json")

    def cancelled(self, job: str) -> bool:
        """Say whether the job was cancelled."""
        return self.store.exists(self.key(job, "cancelled"))

    def done(self, job: str) -> set[str]:
        """Units that are done, the plan among them."""
        return self._units(job, "done")

    def parked(self, job: str) -> set[str]:
        """Units that were given up; a unit that was sent twice may fail once and be done."""
        failed = self._units(job, "failed")
        return failed - self.done(job) if failed else failed

    def _units(self, job: str, kind: str) -> set[str]:
        prefix = self.key(job, f"{kind}/")
        return {key.removeprefix(prefix).removesuffix(".json") for key in self.store.list(prefix)}

    def is_done(self, job: str, unit: str) -> bool:
        """Say whether the unit's marker is there."""
        return self.store.exists(self.key(job, f"done/{unit}.json"))

    def marker(self, job: str, unit: str) -> dict[str, Any]:
        """The unit's marker: outputs, timings, and its summary under `result`."""
        value: dict[str, Any] = self.store.get_json(self.key(job, f"done/{unit}.json"))
        return value

    def runnable(self, job: str) -> tuple[int, list[str]]:
        """Return the current phase (-1 while planning) and its units that are not settled.

        The units are ['plan'] before there is a plan, and ['finish'] when every phase
        is done or a phase ended with a parked shard; they are empty once the job has
        a result.
        """
        if self.store.exists(self.key(job, "result.json")):
            return 0, []
        plan = self.plan(job)
        parked = self.parked(job)
        if plan is None:
            return -1, [FINISH if PLAN in parked else PLAN]
        settled = self.done(job) | parked
        for index, phase in enumerate(plan.phases):
            waiting = [shard.id for shard in phase if shard.id not in settled]
            if waiting:
                return index, waiting
            if any(shard.id in parked for shard in phase):
                break
        return len(plan.phases), [FINISH]

    def cancel(self, job: str) -> None:
        """Stop a job: running units end at their next progress report."""
        if self.result(job) is not None:
            return
        self.store.put(self.key(job, "cancelled"), b"")
        self.close(job, "cancelled", None)

    def close(self, job: str, state: State, result: dict[str, Any] | None) -> None:
        """Write the job's result, and take it off the list of open jobs."""
        record = {"state": state, "result": result, "failed": self.errors(job)}
        self.store.put_json(self.key(job, "result.json"), record)
        self.store.delete(f"open-jobs/{job}")

    def errors(self, job: str) -> dict[str, str]:
        """Parked units and what they failed with."""
        return {
            unit: str(self.store.get_json(self.key(job, f"failed/{unit}.json"))["error"])
            for unit in sorted(self.parked(job))
        }

    def find(self, job: str) -> JobStatus | None:
        """The job's status, or None if it is deleted, be it while it is read."""
        try:
            return self.status(job)
        except (JobNotFoundError, ObjectNotFoundError):
            return None

    def status(self, job: str) -> JobStatus:
        """Compute the job's status from its objects. Raises `JobNotFoundError`."""
        record = self._required(job)
        plan = self.plan(job)
        result = self.result(job)
        phase, _ = self.runnable(job)
        shards = {shard.id for part in plan.phases for shard in part} if plan else set()
        state: State = result["state"] if result else "running" if plan else "planning"
        return JobStatus(
            job=job,
            stage=record["stage"],
            state=state,
            phase=max(0, phase),
            phases=len(plan.phases) if plan else 0,
            done=len(self.done(job) & shards),
            total=len(shards),
            failed=result["failed"] if result else self.errors(job),
            result=result["result"] if result else None,
        )
