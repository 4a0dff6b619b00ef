"""Jobs over real Redis and S3: nothing is lost and nothing appears twice."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from heterotissue.running import Target, run_request
from heterotissue.stack.supervisor import Stack
from shared.errors import InputError
from shared.jobs import JobStatus, Ledger, run_job
from shared.queue.redis_state import RedisLeases, connect, running_key
from shared.queue.window import Waiting
from shared.queue.worker import Dispatcher, QueueError
from shared.settings import Settings
from shared.storage import DirectoryStore, open_store
from tests.gateway import Gateway
from tests.integration.conftest import kill, toy_worker, wait_for
from tests.store_contract import check_store
from tests.toy import ToyRequest, ToyStage


def submit(config: Settings, request: ToyRequest) -> tuple[Ledger, str]:
    ledger = Ledger(open_store(config=config))
    job = ledger.submit(request)
    Dispatcher(config).start(ledger, job)
    return ledger, job


def finished(ledger: Ledger, job: str, seconds: float = 60) -> JobStatus:
    wait_for(lambda: ledger.result(job) is not None, seconds)
    return ledger.status(job)


def test_an_s3_server_is_an_object_store(config: Settings, tmp_path: Path) -> None:
    check_store(open_store("s3://contract-test/some/prefix", config), tmp_path)


def test_wrong_keys_are_told_apart(config: Settings) -> None:
    wrong = config.model_copy(update={"s3_secret_key": type(config.s3_secret_key)("wrong")})
    with pytest.raises(InputError, match="refused the keys"):
        open_store(config=wrong)


def test_it_is_known_whether_a_worker_listens(servers: Stack, config: Settings) -> None:
    dispatcher = Dispatcher(config)
    assert not dispatcher.listens("toy")
    with toy_worker(servers):
        wait_for(lambda: dispatcher.listens("toy"))
        assert not dispatcher.listens("evaluate")


def test_a_job_without_a_worker_says_so_and_waits(
    servers: Stack, config: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    target, request = Target(open_store(config=config), config), ToyRequest(name="waits")
    shown = ""

    def said() -> bool:
        nonlocal shown
        shown += capsys.readouterr().err
        return "no worker listens to 'toy'" in shown

    with ThreadPoolExecutor() as pool:
        status = pool.submit(run_request, target, request)
        wait_for(said)
        with toy_worker(servers):
            assert status.result(60).state == "done"


def test_a_queued_job_gives_the_bytes_of_one_in_process(
    servers: Stack, config: Settings, tmp_path: Path
) -> None:
    request = ToyRequest(name="bytes", parts=6, faults={"square-2": "once"})
    here = Ledger(DirectoryStore(tmp_path))
    run_job(here, ToyStage(), here.submit(request))
    with toy_worker(servers):
        ledger, job = submit(config, request)
        assert finished(ledger, job).state == "done"
    keys = list(here.store.list("toy/bytes/"))
    assert keys == list(ledger.store.list("toy/bytes/"))
    for key in keys:
        assert here.store.get(key) == ledger.store.get(key)


def test_workers_killed_at_random_lose_nothing(servers: Stack, config: Settings) -> None:
    """Kill -9 the worker again and again; every shard ends done, each with the right result."""
    request = ToyRequest(name="killed", parts=30, seconds=0.15, faults={"square-7": "kill"})
    ledger, job = submit(config, request)
    moments = random.Random(0)  # noqa: S311 - moments to kill at, no secret
    for _ in range(4):
        with toy_worker(servers) as worker:
            before = len(ledger.done(job))
            wait_for(lambda seen=before: len(ledger.done(job)) > seen + 1)  # type: ignore[misc]
            time.sleep(moments.uniform(0, 0.2))
            kill(worker)
    with toy_worker(servers):
        status = finished(ledger, job, 90)
    assert (status.state, status.done) == ("done", 32)
    total = sum(i * i for i in range(30))
    assert status.result == {"sums": [total, total]}
    for i in range(30):
        assert ledger.store.get(f"toy/killed/square-{i}") == str(i * i).encode()


def test_a_worker_told_to_stop_hands_back_what_takes_too_long(
    servers: Stack, config: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container: SIGTERM, then the worker's own deadline, and no kill."""
    monkeypatch.setenv("REMAP_SIGTERM", "SIGQUIT")
    monkeypatch.setenv("HTD_STOP_SECONDS", "1")
    ledger, job = submit(config, ToyRequest(name="stopped", parts=2, seconds=20))
    try:
        with toy_worker(servers) as worker:
            wait_for(lambda: running(ledger, job))
            wait_for(lambda: known_to_worker(config))
            worker.terminate()
            assert worker.wait(15) == 0
        assert ledger.done(job) == {"plan"}
        redis = connect(config.broker_url.get_secret_value())
        queued = {unit for _, unit in Waiting(redis).of("toy")}
        assert queued == {"square-0", "square-1"}, "the part under way and the one that waits"
        assert redis.keys(f"lease:{job}/*") == [], "who takes it next need not wait"
        begun = [key for key in ledger.store.list(ledger.key(job, "attempts/")) if "square" in key]
        starts = [ledger.store.get_json(key)["starts"] for key in begun]
        assert starts == [0], "a worker that is told to stop is no failed start"
    finally:
        ledger.cancel(job)  # or its long parts would hold up the tests after this one
    with toy_worker(servers):
        assert finished(ledger, job).state == "cancelled"


def running(ledger: Ledger, job: str) -> bool:
    """Whether a part of a toy job has been started."""
    return any("square" in key for key in ledger.store.list(ledger.key(job, "attempts/")))


def known_to_worker(config: Settings) -> bool:
    """Whether a worker, not only its child, knows that the child has begun a part."""
    workers = Dispatcher(config).app.control.inspect(timeout=0.5).active() or {}
    return any(
        task["time_start"] and "square" in str(task["args"])
        for tasks in workers.values()
        for task in tasks
    )


def test_a_wiped_redis_loses_nothing(servers: Stack, config: Settings) -> None:
    request = ToyRequest(name="wiped", parts=20, seconds=0.1)
    ledger, job = submit(config, request)
    redis = connect(config.broker_url.get_secret_value())
    with toy_worker(servers):
        wait_for(lambda: len(ledger.done(job)) > 3)
        redis.flushall()
        status = finished(ledger, job, 90)
    assert (status.state, status.done, status.failed) == ("done", 22, {})


def test_a_lost_unit_is_found_while_others_wait_in_its_queue(config: Settings) -> None:
    ledger = Ledger(open_store(config=config))
    others = ledger.submit(ToyRequest(name="others"))
    dispatcher = Dispatcher(config)
    dispatcher.start(ledger, others)
    lost = ledger.submit(ToyRequest(name="lost"))
    try:
        dispatcher.redis.lpush("toy", b"\xff\x80 no text")
        wait_for(lambda: (lost, "plan") in Waiting(dispatcher.redis).of("toy"))
        assert dispatcher.reconcile(ledger) == 0, "what waits is not lost"
    finally:
        for job in (lost, others):
            ledger.cancel(job)


def test_a_message_that_nobody_can_read_costs_no_time(servers: Stack, config: Settings) -> None:
    redis = connect(config.broker_url.get_secret_value())
    with toy_worker(servers) as worker:
        ledger, job = submit(config, ToyRequest(name="unread", parts=1))
        assert finished(ledger, job).state == "done"
        for message in (b"\xff\x00 no JSON", b"{}", b"5", b"null", b'{"properties": 1}'):
            redis.lpush("toy", message)
        began = time.monotonic()
        ledger, job = submit(config, ToyRequest(name="after-unread", parts=1))
        assert finished(ledger, job).state == "done"
        assert time.monotonic() - began < 5
        assert worker.poll() is None


def test_a_redis_that_takes_nothing_delays_a_job_and_loses_it_not(
    servers: Stack, config: Settings
) -> None:
    redis = connect(config.broker_url.get_secret_value())
    dispatcher, ledger = Dispatcher(config), Ledger(open_store(config=config))
    with toy_worker(servers):
        redis.config_set("maxmemory", 1)
        try:
            job = ledger.submit(ToyRequest(name="full", parts=2))
            with pytest.raises(QueueError, match="is recorded, but the queue takes nothing"):
                dispatcher.start(ledger, job)
        finally:
            redis.config_set("maxmemory", 0)
        assert finished(ledger, job).state == "done"


def test_a_lease_that_redis_has_lost_is_taken_again(config: Settings) -> None:
    redis = connect(config.broker_url.get_secret_value())
    leases = RedisLeases(redis, 1)
    with leases.hold("job/forgotten"):
        redis.delete("lease:job/forgotten")
        wait_for(lambda: leases.alive("job/forgotten"), 5)
    assert not leases.alive("job/forgotten")


def test_a_cancelled_job_stops_on_its_worker(servers: Stack, config: Settings) -> None:
    ledger, job = submit(config, ToyRequest(name="cancelled", parts=3, seconds=30))
    with toy_worker(servers):
        wait_for(lambda: ledger.plan(job) is not None)
        ledger.cancel(job)
        other, second = submit(config, ToyRequest(name="after", parts=1))
        assert finished(other, second).state == "done"
    assert ledger.status(job).state == "cancelled"
    assert list(ledger.store.list("toy/cancelled/")) == []


def test_leases_are_exclusive_and_expire(config: Settings) -> None:
    redis = connect(config.broker_url.get_secret_value())
    one, other = RedisLeases(redis, 2), RedisLeases(redis, 2)
    running = running_key("toy")
    with one.hold("acme.toy-1/shard") as mine:
        assert mine
        with other.hold("acme.toy-1/shard") as theirs:
            assert not theirs
        assert other.alive("acme.toy-1/shard")
        assert redis.zscore(running, "acme.toy-1/shard") is not None
    assert not other.alive("acme.toy-1/shard")
    assert redis.zscore(running, "acme.toy-1/shard") is None
    redis.set("lease:job/dead", "token", px=200)
    wait_for(lambda: not one.alive("job/dead"), 5)
    redis.set("lease:job/endless", "token")  # by no worker
    with one.hold("job/endless") as mine:
        assert not mine
    wait_for(lambda: not one.alive("job/endless"), 5)


def test_without_a_lease_store_work_goes_on(config: Settings) -> None:
    nowhere = connect("redis://127.0.0.1:1/0")
    with RedisLeases(nowhere, 2).hold("job/shard") as mine:
        assert mine


def test_a_gateway_says_why_a_redis_takes_nothing(config: Settings, tmp_path: Path) -> None:
    redis = connect(config.broker_url.get_secret_value())
    gateway = Gateway(tmp_path, config.broker_url.get_secret_value())
    gateway.resources.root.put_json("access/tenants/local.json", {"upload_bytes_per_day": 5})
    redis.config_set("maxmemory", 1)
    try:
        body = {"file": "a.svs", "bytes": 1}
        answer = gateway.client.post("/v1/slides/a/uploads", json=body)
    finally:
        redis.config_set("maxmemory", 0)
    assert answer.status_code == 503
    assert "the queue takes nothing: " in answer.json()["detail"]
    assert "maxmemory" in answer.json()["detail"]
