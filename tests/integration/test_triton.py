"""A deployed model on a real Triton server."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
import tifffile
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from heterotissue.stack.servers import free_port
from heterotissue.stack.triton import plan_triton
from services.deploy.stage import DeployStage
from services.field.stage import FieldStage
from services.train.stage import TrainStage
from shared.arrays import UInt8
from shared.contracts.deploy import DeployRequest
from shared.contracts.field import FieldRequest, field_key
from shared.contracts.models import ModelRef
from shared.contracts.sampling import Sampling
from shared.contracts.train import TrainRequest
from shared.diffusion.crops import Crop
from shared.diffusion.model_store import load_model
from shared.errors import InputError
from shared.imaging.label_map import write_label_map
from shared.jobs import Ledger, run_job
from shared.serving import client, generator
from shared.serving.client import Server, ServingError, TritonGenerator
from shared.serving.deployments import deployments, next_number
from shared.serving.priority import Priority
from shared.settings import Settings
from shared.storage import DirectoryStore
from tests.integration.conftest import wait_for
from tests.region_sets import make_region_set
from tests.toy_training import RECIPE

SIZE = 32


@dataclass
class Running:
    """A server and the store whose models it serves."""

    store: DirectoryStore
    url: str
    child: subprocess.Popen[bytes]

    def sampler(self, priority: Priority = Priority.BULK, alone: bool = True) -> TritonGenerator:
        number = deployments(self.store, "m")[-1].number
        return TritonGenerator(self.url, "local.m", number, priority=priority, alone=alone)


def deploy(store: DirectoryStore, url: str, version: str, monkey: pytest.MonkeyPatch) -> None:
    from shared.settings import settings

    monkey.setenv("HTD_TRITON_URL", url)
    settings.cache_clear()
    ledger = Ledger(store)
    request = DeployRequest(model="m", version=version, number=next_number(ledger, "m"))
    job = ledger.submit(request)
    status = run_job(ledger, DeployStage(), job, config=Settings(threads=1))
    settings.cache_clear()
    assert status.state == "done", status.failed


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("triton")
    store = DirectoryStore(folder / "store")
    make_region_set(store)
    ledger = Ledger(store)
    other = RECIPE.denoiser.model_copy(update={"conditioning": "concat"})  # has other tensors
    for version, recipe in (
        ("1", RECIPE),
        ("2", RECIPE.model_copy(update={"denoiser": other})),
    ):
        request = TrainRequest(
            run=f"r{version}", regions="toy", recipe=recipe, model="m", version=version
        )
        run_job(ledger, TrainStage(), ledger.submit(request), config=Settings(threads=1))
    ports = (free_port(), free_port(), free_port())
    (folder / "store" / "triton").mkdir()
    launch = plan_triton(folder, str(folder / "store" / "triton"), ports, {"HTD_THREADS": "1"})
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            launch.command, env=os.environ | launch.environment, stdout=log, stderr=log
        )
        url = f"127.0.0.1:{ports[1]}"
        try:
            Server(url).wait(60)
            with pytest.MonkeyPatch.context() as monkey:
                deploy(store, url, "1", monkey)
            yield Running(store, url, child)
        finally:
            child.terminate()
            child.wait(60)
            print((folder / "log").read_text()[-4000:])


def example(seed: int, count: int = 2) -> tuple[np.ndarray, list[list[Crop]], list[int]]:  # type: ignore[type-arg]
    rng = np.random.default_rng(seed)
    labels = np.ones((count, SIZE, SIZE), np.uint8)
    labels[:, :, SIZE // 2 :] = 2
    crops = [
        [Crop(label, 1, 2, rng.integers(256, size=(side, side, 3), dtype=np.uint8))
         for label, side in ((1, 6 + seed % 3), (2, 9))[: 1 + number % 2]]
        for number in range(count)
    ]  # fmt: skip
    return labels, crops, [seed * 100 + number for number in range(count)]


class WithSpeed(Sampling):
    """A sampling with a setting that the server does not know."""

    speed: int = 3


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_triton_gives_what_the_process_gives(running: Running, guidance: float) -> None:
    sampling = Sampling(steps=3, guidance_map=guidance, guidance_crops=guidance)
    here = load_model(running.store, ModelRef("m", "1"), "cpu").generate(*example(1), sampling)
    steps: list[int] = []
    threads = threading.active_count()
    there = running.sampler().generate(*example(1), sampling, callback=steps.append)
    assert there.shape == here.shape == (2, SIZE, SIZE, 3)
    assert np.abs(there.astype(int) - here).max() <= 1
    assert steps == [1, 2, 3]
    wait_for(lambda: threading.active_count() <= threads)


def test_a_field_is_denoised_by_the_server(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.ones((2 * SIZE + 8, 3 * SIZE), np.uint8)
    labels[SIZE:, SIZE:] = 2
    folder = running.store.root / "map.tif"
    write_label_map(folder, [labels], labels.shape[1], labels.shape[0], 0.5)
    running.store.put_file("maps/map.tif", folder)

    def field(name: str) -> UInt8:
        request = FieldRequest.model_validate(
            {"field": name, "model": "m", "version": "1", "labels": "maps/map.tif", "steps": 2,
             "compression": "deflate", "guidance_map": 1.5, "guidance_crops": 1.5}
        )  # fmt: skip
        ledger = Ledger(running.store)
        status = run_job(
            ledger, FieldStage(), ledger.submit(request), config=Settings(threads=1, device="cpu")
        )
        assert status.state == "done", status.failed
        made: UInt8 = tifffile.imread(running.store.local(field_key(name, "slide.tiff")))
        return made

    here = field("here")
    monkeypatch.setattr(generator, "settings", lambda: Settings(triton_url=running.url))
    steps = counted(running.url)
    there = field("there")
    assert counted(running.url) > steps, "the server took the steps"
    assert np.abs(there.astype(int) - here).max() <= 2
    assert np.array_equal(field("again"), there)


def counted(url: str) -> int:
    """Return how many batches the denoisers of a server have computed."""
    found = InferenceServerClient(url).get_inference_statistics().model_stats
    return sum(each.execution_count for each in found if each.name.endswith("-denoiser"))


def test_many_clients_with_other_steps_each_get_their_own(running: Running) -> None:
    model = load_model(running.store, ModelRef("m", "1"), "cpu")
    bulk, interactive = (running.sampler(priority=each, alone=False) for each in Priority)
    asked = [(seed, Sampling(steps=2 + seed % 4)) for seed in range(12)]

    def ask(each: tuple[int, Sampling]) -> UInt8:
        seed, sampling = each
        return (bulk if seed % 3 else interactive).generate(*example(seed), sampling)

    with ThreadPoolExecutor(12) as pool:
        made = list(pool.map(ask, asked))
    for (seed, sampling), images in zip(asked, made, strict=True):
        expected = model.generate(*example(seed), sampling)
        assert np.abs(images.astype(int) - expected).max() <= 3  # kernels differ with the batch


def test_what_does_not_fit_is_refused_with_a_reason(running: Running) -> None:
    sampler = running.sampler()
    labels, crops, seeds = example(1)
    with pytest.raises(InputError, match="beyond the model's"):
        sampler.generate(labels + 7, crops, seeds, Sampling())
    with pytest.raises(InputError, match="no multiple"):
        sampler.generate(labels[:, :31], crops, seeds, Sampling())
    with pytest.raises(InputError, match="makes 32 px"):
        sampler.generate(labels.repeat(2, 1).repeat(2, 2), crops, seeds, Sampling())
    beyond = [[Crop(1, 30, 0, np.zeros((9, 9, 3), np.uint8))]] * 2
    with pytest.raises(InputError, match="reaches beyond the image"):
        sampler.generate(labels, beyond, seeds, Sampling())
    with pytest.raises(InputError, match="steps: must be greater"):
        sampler.generate(labels, crops, seeds, Sampling.model_construct(steps=0))
    with pytest.raises(InputError, match="speed: there is no such field"):
        sampler.generate(labels, crops, seeds, WithSpeed())
    raw = InferenceServerClient(running.url)
    for kind, shape, reason in (
        ("FP32", [1, 4, 32, 32], "shape"),
        ("UINT8", [1, 3, 32, 32], "type"),
    ):
        given = InferInput("images", shape, kind)
        given.set_data_from_numpy(np.zeros(shape, triton_to_np_dtype(kind)))
        with pytest.raises(InferenceServerException, match=reason):
            raw.infer("local.m-1-vae_encoder", [given])


def test_a_request_that_is_given_up_costs_no_further_step(running: Running) -> None:
    class GivenUpError(Exception):
        pass

    def steps_done() -> int:
        found = InferenceServerClient(running.url).get_inference_statistics("local.m-1-denoiser")
        return sum(int(part.execution_count) for part in found.model_stats)

    def give_up(step: int) -> None:
        if step == 2:
            raise GivenUpError

    before = steps_done()
    with pytest.raises(GivenUpError):
        running.sampler().generate(*example(1), Sampling(steps=1000), callback=give_up)
    running.sampler().generate(*example(1), Sampling(steps=20))  # waits for its turn
    assert steps_done() - before < 500


def test_a_server_that_hangs_is_given_up(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PING_MS", 10_000)  # gRPC's least
    monkeypatch.setattr(client, "PONG_MS", 1000)

    def hang(step: int) -> None:
        running.child.send_signal(signal.SIGSTOP)

    try:
        with pytest.raises(ServingError, match="Triton"):
            running.sampler().generate(*example(1), Sampling(steps=1000), callback=hang)
    finally:
        running.child.send_signal(signal.SIGCONT)


def test_a_version_is_swapped_under_load_without_a_failure(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, failures, made = threading.Event(), [], []

    def load() -> None:
        sampler = running.sampler()
        while not stop.is_set():
            try:
                made.append(sampler.generate(*example(1), Sampling(steps=3)))
            except Exception as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    deploy(running.store, running.url, "2", monkeypatch)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert made
    new = running.sampler().generate(*example(1), Sampling(steps=3))
    model = load_model(running.store, ModelRef("m", "2"), "cpu")
    expected = model.generate(*example(1), Sampling(steps=3))
    assert np.abs(new.astype(int) - expected).max() <= 1
    deploy(running.store, running.url, "1", monkeypatch)  # back
    assert [each.version for each in deployments(running.store, "m")] == ["2", "1"]
    assert [Server(running.url).serves("local.m", number) for number in (1, 2, 3)] == [
        False,
        True,
        True,
    ]
    back = running.sampler().generate(*example(1), Sampling(steps=3))
    assert np.abs(back.astype(int) - made[0]).max() <= 1


def test_a_dead_server_is_an_error_that_says_so_and_leaves_no_thread() -> None:
    sampler = TritonGenerator(f"127.0.0.1:{free_port()}", "m", 1)
    threads = threading.active_count()
    with pytest.raises(ServingError, match="Triton"):
        sampler.generate(*example(1), Sampling())
    wait_for(lambda: threading.active_count() <= threads)
