"""Windows of jobs in a real Redis: no job waits for the millions of another one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from shared.jobs import Ledger, NoLeases, Reporter, execute
from shared.queue.redis_state import RedisLeases, queue_length, running_key
from shared.queue.window import LEAST, Waiting
from shared.queue.worker import Dispatcher
from shared.settings import Settings
from shared.storage import DirectoryStore
from tests.toy import ToyRequest, ToyStage

STAGE = "toy"


@pytest.fixture
def dispatcher(config: Settings) -> Dispatcher:
    dispatcher = Dispatcher(config)
    dispatcher.redis.delete(STAGE, f"{STAGE}.first", running_key(STAGE))
    return dispatcher


def step(ledger: Ledger, dispatcher: Dispatcher) -> tuple[str, str]:
    """Take the next unit of the queues as a worker does, run it, and return it."""
    queues = [f"{STAGE}.first", STAGE]
    before = Waiting(dispatcher.redis).of(STAGE)
    dispatcher.redis.brpop(queues, 1)
    ((job, unit),) = before - Waiting(dispatcher.redis).of(STAGE)
    again = execute(
        ledger, ToyStage(), job, unit, leases=NoLeases(), reporter=Reporter(),
        config=dispatcher.config,
    )  # fmt: skip
    dispatcher.window.ended(ledger, job, unit, again)
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
    assert sum(job == large for job, _ in order) <= 2 * LEAST
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
