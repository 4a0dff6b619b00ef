"""A snapshot of a job: its objects, read once, and the state that follows from them."""

from __future__ import annotations

from functools import cached_property
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from shared.contracts.explaining import explain
from shared.contracts.jobs import JobRecord, JobResult, JobStatus, ParkedUnit, State, job_key
from shared.errors import InputError
from shared.jobs.stage import FINISH, PLAN, Plan
from shared.storage import ObjectNotFoundError, Store

M = TypeVar("M", bound=BaseModel)


def stage_of(job: str) -> str:
    """Return the name of a job's stage, which is part of the job's id."""
    return job.rpartition(".")[2].rpartition("-")[0]


class JobNotFoundError(InputError):
    """The store holds no such job, or holds it no longer."""


class UnreadableRecordError(InputError):
    """A record of a job is not what this version writes: cut off, damaged, or newer."""


def read_record(store: Store, key: str, model: type[M]) -> M:
    """Read a record of a job. Raises `ObjectNotFoundError`, or `UnreadableRecordError`."""
    try:
        return store.get_model(key, model)
    except ValidationError as error:
        raise UnreadableRecordError(
            f"{key} cannot be read ({explain(error)}): restore it from a backup, or submit "
            "the request again, which makes everything again"
        ) from error


class Snapshot:
    """The objects of a job, each read when it is first needed and then kept.

    Later changes are seen only by a new snapshot.
    """

    def __init__(self, store: Store, job: str) -> None:
        self.store = store
        self.job = job

    @cached_property
    def record(self) -> JobRecord:
        """The job as it was submitted. Raises `JobNotFoundError`."""
        record = self._read("request.json", JobRecord)
        if record is None:
            raise JobNotFoundError(
                f"{self.store.url} holds no job {self.job!r}: 'htd jobs' lists them"
            )
        return record

    @cached_property
    def plan(self) -> Plan | None:
        """The job's plan, or None if it is not made yet."""
        return self._read("plan.json", Plan)

    @cached_property
    def result(self) -> JobResult | None:
        """The job's final state and result, or None while the job is open."""
        return self._read("result.json", JobResult)

    @cached_property
    def parked(self) -> frozenset[str]:
        """Units that were given up, except those that another run has finished."""
        failed = self._units("failed")
        return failed - self.done if failed else failed

    @cached_property
    def done(self) -> frozenset[str]:
        """Units that are done, including the plan."""
        return self._units("done")

    @cached_property
    def errors(self) -> dict[str, str]:
        """Parked unit → its last error, from the records of the units."""
        found: dict[str, str] = {}
        for unit in sorted(self.parked):
            try:
                record = self._read(f"failed/{unit}.json", ParkedUnit)
            except UnreadableRecordError as error:
                found[unit] = str(error)
            else:
                found[unit] = record.error if record else "its error was deleted"
        return found

    @property
    def wrong_input(self) -> bool:
        """Whether units were given up, all of them because of their input."""
        records = (self._read(f"failed/{unit}.json", ParkedUnit) for unit in self.parked)
        return bool(self.parked) and all(record and record.wrong_input for record in records)

    @property
    def failed(self) -> dict[str, str]:
        """Parked unit → its last error, from the job's result once there is one."""
        return self.errors if self.result is None else self.result.failed

    @property
    def state(self) -> State:
        """The job's state."""
        if self.result is not None:
            return self.result.state
        return "running" if self.plan is not None else "planning"

    @property
    def runnable(self) -> tuple[int, list[str]]:
        """The current phase (-1 while planning) and its units that are not settled.

        The units are ['plan'] before there is a plan, and ['finish'] when every phase
        is done or a phase ended with a parked shard; they are empty once the job has
        a result.
        """
        if self.result is not None:
            return 0, []
        if self.plan is None:
            return -1, [FINISH if PLAN in self.parked else PLAN]
        settled = self.parked | self.done
        for index, phase in enumerate(self.plan.phases):
            waiting = [shard.id for shard in phase if shard.id not in settled]
            if waiting:
                return index, waiting
            if any(shard.id in self.parked for shard in phase):
                break
        return len(self.plan.phases), [FINISH]

    def following(self, unit: str) -> list[str]:
        """Return the units of the next phase if the phase of `unit` is settled, else nothing."""
        _, waiting = self.runnable
        if not waiting or unit == FINISH:
            return []
        if self.plan is not None and unit != PLAN:
            own = next(phase for phase in self.plan.phases if unit in {item.id for item in phase})
            if waiting[0] in {shard.id for shard in own}:
                return []
        return waiting

    def may_run(self, unit: str) -> bool:
        """Say whether it is the turn of a unit; a parked unit may be tried again."""
        phase, waiting = self.runnable
        if unit in waiting:
            return True
        begun = self.plan.phases[: phase + 1] if self.plan and waiting else ()
        return unit not in self.done and any(unit == shard.id for own in begun for shard in own)

    def status(self) -> JobStatus:
        """Compute the job's status; with an unreadable record, the job has failed.

        Raises:
            JobNotFoundError: the store holds no such job.
        """
        try:
            return self._status()
        except UnreadableRecordError as error:
            return JobStatus(
                job=self.job, stage=stage_of(self.job), state="failed", phase=0, phases=0, done=0,
                total=0, failed={"record": str(error)}, result=None,
            )  # fmt: skip

    def _status(self) -> JobStatus:
        stage, (phase, _) = self.record.stage, self.runnable
        shards = {shard.id for shard in self.plan.shards} if self.plan else set()
        return JobStatus(
            job=self.job,
            stage=stage,
            state=self.state,
            phase=max(0, phase),
            phases=len(self.plan.phases) if self.plan else 0,
            done=len(self.done & shards) if shards else 0,
            total=len(shards),
            failed=self.failed,
            result=self.result.result if self.result else None,
        )

    def _read(self, name: str, model: type[M]) -> M | None:
        try:
            return read_record(self.store, job_key(self.job, name), model)
        except ObjectNotFoundError:
            return None

    def _units(self, folder: str) -> frozenset[str]:
        prefix = job_key(self.job, f"{folder}/")
        keys = self.store.list(prefix)
        return frozenset(key.removeprefix(prefix).removesuffix(".json") for key in keys)
