"""The models of a Triton server and their requests, without the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from services.image import stage as image
from shared.contracts.base import Classes
from shared.contracts.deploy import Deployment, deployment_key
from shared.contracts.image import ImageRequest
from shared.contracts.recipe import DenoiserRecipe, VaeRecipe
from shared.contracts.sampling import Sampling
from shared.diffusion.appearances import Appearance
from shared.diffusion.autoencoder import decode_latents, encode_latents, make_vae, to_pixels
from shared.diffusion.conditionings import make_denoiser
from shared.diffusion.crops import Crop
from shared.diffusion.denoiser import Tensors
from shared.diffusion.fields import FieldMap, FieldSampler
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.errors import InputError
from shared.imaging.codec import encode_png
from shared.jobs import Ledger, run_job
from shared.serving import client, generator, in_flight
from shared.serving.client import TritonGenerator
from shared.serving.engine import Batched
from shared.serving.in_flight import (
    Engines,
    InFlightSampler,
    RequestOptions,
    pack_crops,
    unpack_crops,
)
from shared.serving.priority import Priority
from shared.serving.protocol import MAX_CROPS, MAX_IMAGES
from shared.settings import Settings
from shared.storage import DirectoryStore, sha256
from tests.models import publish_toy_model
from tests.region_sets import make_region_set

SIZE = 32


def crop(label: int = 1, x: int = 0, y: int = 0, side: int = 8) -> Crop:
    return Crop(label, x, y, np.full((side, side, 3), 40 * label, np.uint8))


class Server:
    """The engines of a toy model, which note what they are asked; and its sampler."""

    def __init__(self, conditioning: str = "regional", max_tokens: int | None = None) -> None:
        torch.manual_seed(0)
        vae = make_vae(VaeRecipe(channels=(8, 16), latent_channels=4)).eval()
        recipe = DenoiserRecipe.model_validate(
            {
                "conditioning": conditioning, "channels": (32, 64), "attention": (False, True),
                "condition_channels": 32,
            }
        )  # fmt: skip
        denoiser = make_denoiser(recipe, SIZE, Classes.of("stroma", "tumor"), vae).eval()
        self.pipeline = HeteroTissuePipeline(vae, denoiser)
        self.steps = 0
        self.encoded: list[int] = []
        self.alone: list[bool] = []
        self.sampler = InFlightSampler(
            denoiser,
            Engines(self._denoise, self._encode, self._decode),
            size=SIZE,
            device="cpu",
            precision="fp32",
            max_tokens=max_tokens,
        )

    async def _denoise(self, sample: Tensor, time: Tensor, encoded: Tensors) -> Tensor:
        self.steps += 1
        with torch.inference_mode():
            return self.pipeline.denoiser(sample, time, encoded)  # type: ignore[no-any-return]

    async def _encode(self, images: Tensor, alone: bool) -> Tensor:
        self.encoded.append(len(images))
        self.alone.append(alone)
        with torch.inference_mode():
            return encode_latents(self.pipeline.vae, images)

    async def _decode(self, latents: Tensor, alone: bool) -> Tensor:
        self.alone.append(alone)
        with torch.inference_mode():
            return to_pixels(decode_latents(self.pipeline.vae, latents))

    async def ask(
        self,
        crops: Sequence[Sequence[Crop]],
        size: int = SIZE,
        wanted: Callable[[], bool] = lambda: True,
        **options: Any,
    ) -> Tensor:
        labels = np.ones((len(crops), size, size), np.uint8)
        return await self.sampler(
            labels, crops, range(len(crops)), RequestOptions(**options), lambda _: None, wanted
        )

    def make(self, crops: Sequence[Sequence[Crop]], **given: Any) -> np.ndarray[Any, Any]:
        return np.asarray(asyncio.run(self.ask(crops, **given)))


def test_conditions_are_encoded_once_however_many_steps_there_are() -> None:
    server = Server()
    made = server.make([[crop()], [crop(2)]], steps=7)
    expected = server.pipeline(
        np.ones((2, SIZE, SIZE), np.uint8), [[crop()], [crop(2)]], range(2), Sampling(steps=7)
    )
    assert np.abs(made.astype(int) - expected).max() <= 1
    assert server.steps == 7
    assert server.encoded == [2]


def test_more_crops_than_the_encoder_takes_at_a_time_are_encoded_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crops = [[crop(), crop(2)], [crop(2)]]
    whole = Server().make(crops, steps=2)
    monkeypatch.setattr(in_flight, "max_rows", lambda part, size: 2)
    server = Server()
    assert np.abs(server.make(crops, steps=2).astype(int) - whole).max() <= 1
    assert server.encoded == [2, 1]


@pytest.mark.parametrize("alone", [True, False])
def test_encoding_and_decoding_stay_alone_where_the_request_does(alone: bool) -> None:
    server = Server()
    server.make([[crop()]], steps=1, alone=alone)
    assert server.alone == [alone, alone]


def test_a_dataset_decodes_no_further_images_until_an_urgent_request_has_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(in_flight, "decoded_at_a_time", lambda pixels, device: 1)
    urgent: list[asyncio.Task[Tensor]] = []

    class Interrupted(Server):
        async def _decode(self, latents: Tensor, alone: bool) -> Tensor:
            if not urgent:
                urgent.append(
                    asyncio.create_task(
                        self.ask([[crop()]], priority_class=Priority.INTERACTIVE, alone=False)
                    )
                )
                await asyncio.sleep(0)  # so that it begins
            return await super()._decode(latents, alone)

    async def both(server: Server) -> None:
        await server.ask([[], [], []], steps=1)
        await urgent[0]

    server = Interrupted()
    asyncio.run(both(server))
    assert server.alone == [True, False, False, True, True]


@pytest.mark.parametrize("conditioning", ["concat", "regional"])
def test_windows_of_a_field_are_those_of_the_process(conditioning: str) -> None:
    server, sampling = Server(conditioning), Sampling(steps=3, guidance_map=2, guidance_crops=2)
    labels = np.ones((80, 72), np.uint8)
    labels[20:, 30:] = 2
    looks = [Appearance.of([crop(1), crop(2, side=12)], x, 0.5) for x in (0.0, 1.0)]
    asked: list[tuple[int, int]] = []

    class Remote:
        def velocity(
            self, samples: Any, step: int, labels: Any, crops: Any, sampling: Sampling
        ) -> Any:
            asked.append((step, len(samples)))
            options = RequestOptions(**sampling.model_dump(), at_step=step)
            given = unpack_crops(*pack_crops(crops))
            answer = server.sampler.velocity(
                torch.from_numpy(samples), labels, given, options, lambda: True
            )
            return asyncio.run(answer).numpy()

    here, there = (
        FieldSampler(server.pipeline, SIZE, sampling, FieldMap.of(labels), looks, 3, server=remote)
        for remote in (None, Remote())
    )
    strip = here.noise(0, here.height)
    for step in range(sampling.steps):
        following = here.advance(step, strip, 0, here.height)
        served = there.advance(step, strip, 0, there.height)
        torch.testing.assert_close(served.sample, following.sample, atol=1e-4, rtol=0)
        strip = following
    assert {step for step, _ in asked} == {0, 1, 2}
    assert server.steps == len(asked), "a request costs one step"
    for wrong, message in ((0, "samples have shape"), (3, "at_step is 0 to 2, not 3")):
        with pytest.raises(InputError, match=message):
            asyncio.run(
                server.sampler.velocity(
                    torch.zeros(1, 4, 16, 8 + 8 * (wrong > 0)),
                    np.ones((1, SIZE, SIZE), np.uint8), [[]],
                    RequestOptions(steps=3, at_step=wrong), lambda: True,
                )
            )  # fmt: skip


@pytest.mark.parametrize(("device", "most"), [("cpu", 1), ("cuda", 2)])
def test_on_a_cpu_one_network_computes_at_a_time(device: str, most: int) -> None:
    computing: list[int] = []

    async def compute(*_: object) -> Tensor:
        computing.append(1)
        counts.append(len(computing))
        await asyncio.sleep(0)
        computing.pop()
        return torch.zeros(1)

    async def ask(engines: Engines) -> None:
        rows = torch.zeros(1)
        await asyncio.gather(engines.denoise(rows, rows, {}), engines.decode(rows, True))

    counts: list[int] = []
    denoiser = Server().pipeline.denoiser
    sampler = InFlightSampler(
        denoiser, Engines(compute, compute, compute), size=SIZE, device=device, precision="fp32"
    )
    asyncio.run(ask(sampler.engines))
    assert max(counts) == most


def test_a_request_that_is_not_wanted_costs_no_step() -> None:
    server = Server()
    with pytest.raises(asyncio.CancelledError):
        server.make([[crop()]], wanted=lambda: False)
    assert server.steps == 0


@pytest.mark.parametrize("conditioning", ["concat", "regional"])
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (crop(x=-1), r"8 px at \(-1, 0\) reaches beyond"),
        (crop(y=SIZE - 7), r"8 px at \(0, 25\) reaches beyond"),
        (crop(side=SIZE + 1), "33 px at .* reaches beyond the image of 32×32"),
        (crop(0), "label 0, but this model takes crops of 1 to 2"),
        (crop(3), "label 3, but this model takes crops of 1 to 2"),
    ],
)
def test_crops_that_do_not_fit_are_refused(conditioning: str, given: Crop, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Server(conditioning).make([[given]])


@pytest.mark.parametrize(
    ("crops", "tokens"),
    [([], 37), ([crop()], 37), ([crop(side=SIZE)], 257), ([crop(), crop(2, side=20)], 201)],
)
def test_crops_beyond_the_profile_of_a_plan_are_refused_by_name(
    crops: list[Crop], tokens: int
) -> None:
    """Crops below 12 px count as 12 px, and all crops as the largest one: 2 px are a token."""
    server = Server(max_tokens=tokens)
    server.make([crops], steps=1)
    assert server.steps == 1
    if crops:
        with pytest.raises(InputError, match=f"are {tokens} tokens, .* takes {tokens - 1}: give"):
            Server(max_tokens=tokens - 1).make([crops])


def test_maps_of_another_size_are_refused_before_anything_is_computed() -> None:
    server = Server()
    with pytest.raises(InputError, match="makes 32 px, not maps of 64×64"):
        server.make([[crop()]], size=64)
    assert not server.encoded


def test_no_images_have_no_crops() -> None:
    assert unpack_crops(*pack_crops([])) == []


def test_too_many_crops_or_images_are_refused() -> None:
    with pytest.raises(InputError, match="256 crops of an image are more than 255"):
        unpack_crops(*pack_crops([[crop(side=1)] * (MAX_CROPS + 1)]))
    many = np.zeros((MAX_IMAGES + 1, 1, 1), np.uint8)
    with pytest.raises(InputError, match="257 images at a time"):
        TritonGenerator("nowhere:1", "m", 1).generate(
            many, [[]] * len(many), range(len(many)), Sampling()
        )


class Lent:
    """A tensor as Triton hands it over."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def to_dlpack(self) -> Any:
        return torch.utils.dlpack.to_dlpack(self.value)

    @classmethod
    def from_dlpack(cls, name: str, value: Tensor) -> Lent:
        return cls(value)


UTILITIES = SimpleNamespace(
    get_input_tensor_by_name=lambda request, name: Lent(request.value),
    Tensor=Lent,
    TritonError=lambda text: text,
    InferenceResponse=lambda output_tensors, error=None: SimpleNamespace(
        value=output_tensors[0].value.tolist() if output_tensors else None, error=error
    ),
)


def ask(network: Callable[[Tensor], Tensor], *requests: tuple[list[float], bool]) -> list[Any]:
    """Answer requests of (values, alone) as the models with a network do."""
    instance = SimpleNamespace(inputs=["x"], device="cpu", precision="fp32")
    answer = Batched(UTILITIES, instance, "y", network)  # type: ignore[arg-type]
    return answer(
        [
            SimpleNamespace(value=torch.tensor(values), parameters=lambda a=a: json.dumps(a))
            for values, a in ((values, {"alone": alone}) for values, alone in requests)
        ]
    )


def test_requests_share_a_call_of_the_network_unless_they_must_be_alone() -> None:
    calls: list[int] = []

    def network(x: Tensor) -> Tensor:
        calls.append(len(x))
        return 2 * x

    found = ask(network, ([1], False), ([2, 3], True), ([4, 5], False), ([6], True))
    assert [each.value for each in found] == [[2], [4, 6], [8, 10], [12]]
    assert sorted(calls) == [1, 2, 3]


def test_a_row_that_the_network_refuses_fails_no_other_request() -> None:
    def network(x: Tensor) -> Tensor:
        if (x == 13).any():
            raise ValueError("unlucky")
        return x

    found = ask(network, ([1], False), ([13], False), ([2], False))
    assert [each.value for each in found] == [[1], None, [2]]
    assert [each.error for each in found] == [None, "ValueError: unlucky", None]


def test_single_images_go_first_and_share_their_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    class Remote:
        def generate(self, labels: Any, crops: Any, seeds: Any, sampling: Sampling) -> Any:
            return np.zeros((1, SIZE, SIZE, 3), np.uint8)

    def opened(url: str, model: str, number: int, *, priority: Priority, alone: bool) -> Remote:
        asked.append({"model": model, "urgent": priority > Priority.BULK, "alone": alone})
        return Remote()

    monkeypatch.setattr(generator, "settings", lambda: Settings(triton_url="triton:8001"))
    monkeypatch.setattr(client, "TritonGenerator", opened)
    server = SimpleNamespace(wait=lambda seconds: None, serves=lambda model, number: True)
    monkeypatch.setattr(client, "Server", lambda url: server)
    store = DirectoryStore(tmp_path)
    record = publish_toy_model(store, make_region_set(store))
    store.put_json(
        deployment_key("toy", 1),
        Deployment(number=1, version="1", engine="pytorch", sha256=record.sha256),
    )
    png = encode_png(np.ones((SIZE, SIZE), np.uint8))
    labels = f"images/inputs/{sha256(png)}.png"
    store.put(labels, png)
    ledger = Ledger(store)
    job = ledger.submit(ImageRequest(image="one", model="toy", labels=labels))
    assert run_job(ledger, image.ImageStage(), job, config=Settings(threads=1)).state == "done"
    assert asked == [{"model": "local.toy", "urgent": True, "alone": False}]
