"""The client of a Triton server: it generates images, and loads and unloads deployments."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from shared.arrays import Float32, UInt8
from shared.contracts.sampling import Sampling
from shared.diffusion.crops import Crop
from shared.errors import HeteroTissueError, InputError, UnavailableError
from shared.serving.in_flight import pack_crops
from shared.serving.priority import Priority
from shared.serving.protocol import MAX_IMAGES, PARTS, REFUSED, deployed_number, served_name
from shared.tracing import new_traceparent, trace_id

LOAD_SECONDS = 600.0
"""Timeout for loading a model; a TensorRT plan takes minutes where CUDA has to compile."""

ANSWER_SECONDS = 30.0
"""Timeout of calls without computation; a server that takes longer counts as hung."""

LOST = {"StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED"}
AWAY = ("is not ready", "unknown model")
"""What the server says of a model that is being unloaded; whoever opens it again loads it."""

PING_MS = 310_000
"""Interval between keepalive pings; Triton takes more than one in five minutes for an attack."""

PONG_MS = 20_000
"""Timeout for the answer to a keepalive ping."""


class ServingError(HeteroTissueError):
    """The server did not answer, or failed; another try may help."""


class TritonUnavailableError(ServingError, UnavailableError):
    """The server does not answer; work waits for it."""


class LoadError(ServingError):
    """The server answered that it cannot load a model."""


class Server:
    """A Triton server and its models.

    Args:
        url: host:port of its gRPC service.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = InferenceServerClient(url)

    def wait(self, seconds: float) -> None:
        """Wait until the server is ready. Raises `ServingError` after `seconds`."""
        deadline = time.monotonic() + seconds
        while not self.ready():
            if time.monotonic() > deadline:
                raise TritonUnavailableError(f"the Triton server at {self.url} is not ready")
            time.sleep(0.1)

    def ready(self) -> bool:
        """Return whether the server answers and accepts requests."""
        try:
            return bool(self.client.is_server_ready(client_timeout=ANSWER_SECONDS))
        except InferenceServerException:
            return False

    def serves(self, model: str, number: int) -> bool:
        """Return whether a deployment is loaded. Raises `ServingError`."""
        try:
            name = served_name(model, number, "sampler")
            return bool(self.client.is_model_ready(name, client_timeout=ANSWER_SECONDS))
        except InferenceServerException as error:
            raise _as_error(error) from error

    def load(self, model: str, number: int, size: int) -> None:
        """Load all parts of a deployment, and make one image with it as a test.

        Args:
            model, number: name of the model with its tenant, and number of the deployment.
            size: side of the model's images in pixels.

        Raises:
            LoadError: the server cannot load a part; the message gives its reason.
            ServingError: the server does not answer, or cannot make an image.
        """
        for part in PARTS:
            name = served_name(model, number, part)
            try:
                self.client.load_model(name, client_timeout=LOAD_SECONDS)
            except InferenceServerException as error:
                kind = TritonUnavailableError if error.status() in LOST else LoadError
                raise kind(f"Triton cannot load {name}: {error.message()}") from error
        blank = np.zeros((1, size, size), np.uint8)
        TritonGenerator(self.url, model, number).generate(blank, [[]], [0], Sampling(steps=1))

    def retire(self, model: str, kept: Container[int]) -> None:
        """Unload the deployments of a tenant's model whose numbers are not in `kept`.

        Each deployment finishes its running requests first.

        Raises:
            ServingError: the server does not answer, or a deployment does not finish in time.
        """
        try:
            index = self.client.get_model_repository_index(client_timeout=ANSWER_SECONDS).models
            loaded = {deployed_number(each.name, model) for each in index if each.state == "READY"}
            for number in loaded:
                if number is not None and number not in kept:
                    # The sampler first, because its running requests need the other parts.
                    for part in reversed(PARTS):
                        self._unload(served_name(model, number, part))
        except InferenceServerException as error:
            raise _as_error(error) from error

    def _unload(self, name: str) -> None:
        self.client.unload_model(name, client_timeout=ANSWER_SECONDS)
        deadline = time.monotonic() + LOAD_SECONDS
        while self._state(name) == "UNLOADING":
            if time.monotonic() > deadline:
                raise ServingError(f"Triton: {name} does not finish its running requests")
            time.sleep(0.1)

    def _state(self, name: str) -> str:
        index = self.client.get_model_repository_index(client_timeout=ANSWER_SECONDS)
        return next((each.state for each in index.models if each.name == name), "UNAVAILABLE")


class TritonGenerator:
    """Generates images on a Triton server.

    Args:
        url: host:port of the server's gRPC service.
        model: name of the model, with its tenant.
        number: number of the deployment.
        priority: priority of all requests.
        alone: True keeps the images of a request in batches of their own, so that their bits
            depend on no other request.
    """

    def __init__(
        self,
        url: str,
        model: str,
        number: int,
        *,
        priority: Priority = Priority.BULK,
        alone: bool = True,
    ) -> None:
        self._url = url
        self._name = served_name(model, number, "sampler")
        self._priority = priority
        self._alone = alone

    @property
    def device(self) -> str:
        """'cpu' or 'cuda': where the server runs the model. Raises `ServingError`."""
        try:
            found = InferenceServerClient(self._url).get_model_config(
                self._name, client_timeout=ANSWER_SECONDS
            )
        except InferenceServerException as error:
            raise _as_error(error) from error
        (where,) = found.config.instance_group
        return "cuda" if where.kind == where.KIND_GPU else "cpu"

    def generate(
        self,
        labels: UInt8,
        crops: Sequence[Sequence[Crop]],
        seeds: Sequence[int],
        sampling: Sampling,
        *,
        use_map: bool = True,
        use_crops: bool = True,
        callback: Callable[[int], None] | None = None,
    ) -> UInt8:
        """Request images and wait for them; see `HeteroTissuePipeline.__call__`.

        May be called from many threads. If `callback` raises, the server cancels the request.

        Raises:
            InputError: the server refuses the request, or it has too many images.
            ServingError: the server does not answer, or fails.
        """
        if len(labels) > MAX_IMAGES:
            raise InputError(
                f"{len(labels)} images at a time are more than the {MAX_IMAGES} that Triton "
                "takes: make the batches smaller"
            )
        options = {"use_map": use_map, "use_crops": use_crops, "progress": callback is not None}
        tensors = {"seeds": np.array(seeds, np.int64)[:, None]}
        images: UInt8 = self._ask("images", labels, crops, tensors, sampling, options, callback)
        return images

    def velocity(
        self,
        samples: Float32,
        step: int,
        labels: UInt8,
        crops: Sequence[Sequence[Crop]],
        sampling: Sampling,
    ) -> Float32:
        """Request the guided velocity of samples, float32 (batch, C, h, w), at the time of a step.

        Args:
            samples: x at the time of the step.
            step: number of the step, from 0.
            labels, crops, sampling: see `HeteroTissuePipeline.__call__`.

        Raises:
            InputError: the server refuses the request.
            ServingError: the server does not answer, or fails.
        """
        options = {"use_crops": any(crops), "at_step": step}
        velocity: Float32 = self._ask(
            "velocity", labels, crops, {"samples": samples}, sampling, options, None
        )
        return velocity

    def _ask(
        self,
        output: str,
        labels: UInt8,
        crops: Sequence[Sequence[Crop]],
        tensors: dict[str, NDArray[Any]],
        sampling: Sampling,
        options: dict[str, Any],
        callback: Callable[[int], None] | None,
    ) -> Any:
        """Send a request, hand its progress to `callback`, and return one output as an array."""
        parameters = sampling.model_dump() | options
        parameters |= {"priority_class": int(self._priority), "alone": self._alone}
        names = ("crops", "crop_labels", "crop_sides", "crop_corners")
        tensors = {**dict(zip(names, pack_crops(crops), strict=True)), "labels": labels, **tensors}
        answers: SimpleQueue[tuple[Any, InferenceServerException | None]] = SimpleQueue()
        client = InferenceServerClient(self._url, channel_args=_channel())
        # One stream per request, because an error on a stream does not name its request.
        client.start_stream(
            lambda result, error: answers.put((result, error)),
            headers={"traceparent": new_traceparent()},
        )
        waiting = False
        try:
            client.async_stream_infer(
                self._name,
                [_input(name, value) for name, value in tensors.items()],
                request_id=trace_id(),
                parameters=parameters,
            )
            waiting = True
            while True:
                result, error = answers.get()
                step = None if error is not None else result.as_numpy("step")
                waiting = step is not None
                if error is not None:
                    raise _as_error(error)
                if step is None:
                    return result.as_numpy(output)
                if callback is not None:
                    callback(int(step[0, 0]))
        except InferenceServerException as error:
            raise _as_error(error) from error
        finally:
            # Cancel only an unanswered request, because each cancelled stream leaks a thread.
            client.stop_stream(cancel_requests=waiting)
            client.close()


def _channel() -> list[tuple[str, int]]:
    """Return gRPC options: messages of any size, and pings.

    tritonclient's `KeepAliveOptions` cannot set `grpc.http2.ping_timeout_ms`.
    """
    return [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.keepalive_time_ms", PING_MS),
        ("grpc.http2.ping_timeout_ms", PONG_MS),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def _input(name: str, value: NDArray[Any]) -> InferInput:
    given = InferInput(name, value.shape, np_to_triton_dtype(value.dtype))
    given.set_data_from_numpy(np.ascontiguousarray(value))
    return given


def _as_error(error: InferenceServerException) -> HeteroTissueError:
    text = str(error.message())
    if text.startswith(REFUSED):
        return InputError(text.removeprefix(REFUSED))
    away = error.status() in LOST or any(words in text for words in AWAY)
    return (TritonUnavailableError if away else ServingError)(f"Triton: {text}")
