"""Windows of jobs in a real Redis: no job waits for the millions of another one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from shared.jobs import Ledger, NoLeases, Reporter, execute
from shared.queue.redis_state import RedisLeases, queue_length, running_key
from shared.queue.tenants import tenant_of
from shared.queue.turns import AHEAD
from shared.queue.window import LEAST, Waiting
from shared.queue.worker import Dispatcher
from shared.settings import Settings
from shared.storage import DirectoryStore
from tests.toy import ToyRequest, ToyStage

STAGE = "toy"


@pytest.fixture
def dispatcher(config: Settings) -> Dispatcher:
    """A dispatcher on a database of its own, which no reconciler looks at."""
    url = config.broker_url.get_secret_value().removesuffix("/0") + "/1"
    broker = {"broker_url": type(config.broker_url)(url)}
    dispatcher = Dispatcher(config.model_copy(update=broker))
    dispatcher.redis.flushdb()
    return dispatcher


def step(ledgers: Ledger | dict[str, Ledger], dispatcher: Dispatcher) -> tuple[str, str]:
    """Take the next unit of the queues as a worker does, run it, and return it."""
    if isinstance(ledgers, Ledger):
        ledgers = {"local": ledgers}
    queues = [f"{STAGE}.first", STAGE]
    before = Waiting(dispatcher.redis).of(STAGE)
    dispatcher.redis.brpop(queues, 1)
    ((job, unit),) = before - Waiting(dispatcher.redis).of(STAGE)
    again = execute(
        ledgers[tenant_of(job)], ToyStage(), job, unit, leases=NoLeases(), reporter=Reporter(),
        config=dispatcher.config,
    )  # fmt: skip
    dispatcher.window.ended(ledgers.__getitem__, job, unit, again)
    return job, unit


def test_a_small_job_begins_before_the_rest_of_a_large_one(
    dispatcher: Dispatcher, tmp_path: Path
) -> None:
    ledger = Ledger(DirectoryStore(tmp_path))
    large = ledger.submit(ToyRequest(name="large", parts=60))
    dispatcher.start(ledger, large)
    for _ in range(4):
        step(ledger, dispatcher)
    assert queue_length(dispatcher.redis, STAGE) <= LEAST
    small = ledger.submit(ToyRequest(name="small", parts=3))
    dispatcher.start(ledger, small)
    assert [step(ledger, dispatcher) for _ in range(2)] == [(small, "plan"), (small, "square-0")]
    order = []
    while ledger.is_open(small):
        order.append(step(ledger, dispatcher))
    assert sum(job == large for job, _ in order) <= 3 * LEAST
    assert ledger.status(small).state == "done"
    while ledger.is_open(large):
        order.append(step(ledger, dispatcher))
    assert (ledger.status(large).state, ledger.status(large).done) == ("done", 62)
    units = [each for each in order if each[0] == large]
    assert len(set(units)) == len(units), "no unit was queued twice"
    assert dispatcher.redis.keys(f"flight:{large}") == []


def test_a_lost_message_is_sent_again_when_a_lease_would_have_ended(
    dispatcher: Dispatcher, tmp_path: Path
) -> None:
    ledger = Ledger(DirectoryStore(tmp_path))
    job = ledger.submit(ToyRequest(name="lost message", parts=1))
    dispatcher.start(ledger, job)
    dispatcher.redis.delete(STAGE)
    assert dispatcher.reconcile(ledger) == 0, "it may be on its way to its lease"
    dispatcher.redis.zadd(f"flight:{job}", {"plan": time.time() - 3600})
    assert dispatcher.reconcile(ledger) == 1
    assert dispatcher.reconcile(ledger) == 0, "what waits is not lost"
    dispatcher.redis.flushdb()
    assert dispatcher.reconcile(ledger) == 1
    leases = RedisLeases(dispatcher.redis, 2)
    dispatcher.redis.flushdb()
    with leases.hold(f"{job}/plan"):
        assert dispatcher.reconcile(ledger) == 0, "it runs, though Redis has lost all else"
        assert dispatcher.redis.zcard(running_key(STAGE)) == 1
    assert dispatcher.redis.zcard(running_key(STAGE)) == 0
    dispatcher.redis.zadd(running_key(STAGE), {"of a worker that was killed": time.time() - 1})
    dispatcher.forget_ended()
    assert dispatcher.redis.zcard(running_key(STAGE)) == 0
    ledger.cancel(job)


def test_tenants_and_their_jobs_get_equal_shares(dispatcher: Dispatcher, tmp_path: Path) -> None:
    """One tenant has eight jobs, another has one, and gets half of the workers."""
    names = ("many", "one")
    ledgers = {name: Ledger(DirectoryStore(tmp_path / name), owner=name) for name in names}
    ran: dict[str, list[str]] = {"many": [], "one": []}

    def submit(tenant: str, name: str, parts: int) -> str:
        job = ledgers[tenant].submit(ToyRequest(name=name, parts=parts))
        dispatcher.start(ledgers[tenant], job)
        return job

    def steps(count: int) -> None:
        for _ in range(count):
            job, _ = step(ledgers, dispatcher)
            ran[tenant_of(job)].append(job)

    jobs = [submit("many", f"job {n}", 40) for n in range(8)]
    steps(12)
    assert queue_length(dispatcher.redis, STAGE) <= LEAST + AHEAD
    single = submit("one", "single", 500)
    steps(AHEAD + 1)
    assert single in ran["one"], "a new tenant begins at once"
    steps(LEAST)  # until the units that were queued before are through
    ran["many"].clear(), ran["one"].clear()
    steps(48)
    assert abs(len(ran["one"]) - 24) <= LEAST // 2, "a half each"
    counts = [ran["many"].count(job) for job in jobs]
    assert 1 <= min(counts) <= max(counts) <= 5, counts


def test_a_tenant_that_submits_all_the_time_keeps_nobody_waiting(
    dispatcher: Dispatcher, tmp_path: Path
) -> None:
    names = ("hasty", "calm")
    ledgers = {name: Ledger(DirectoryStore(tmp_path / name), owner=name) for name in names}
    calm = ledgers["calm"].submit(ToyRequest(name="calm", parts=500))
    dispatcher.start(ledgers["calm"], calm)
    for _ in range(3):
        step(ledgers, dispatcher)
    ran = []
    for number in range(40):
        job = ledgers["hasty"].submit(ToyRequest(name=f"hasty {number}", parts=1))
        dispatcher.start(ledgers["hasty"], job)
        ran.append(tenant_of(step(ledgers, dispatcher)[0]))
    assert ran[0] == "hasty", "its first job begins at once"
    assert abs(ran[8:].count("calm") - 16) <= 4, ran
