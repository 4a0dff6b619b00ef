"""Talking to a Triton server: generating images, and loading models."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from shared.diffusion.crops import Crop
from shared.errors import HeteroTissueError, InputError
from shared.serving.contract import MOST_IMAGES, PARTS, REFUSED, deployed_number, served_name
from shared.serving.sampling import pack_crops

UInt8 = NDArray[np.uint8]

LOAD_SECONDS = 600.0
"""A TensorRT plan takes minutes to load where CUDA has to compile."""
ANSWER_SECONDS = 30.0
"""For questions that cost the server nothing; one that takes longer hangs."""
PING_MS = 310_000
"""Between pings of a server that says nothing: it may be gone. Triton takes pings more often than
every five minutes for an attack."""
PONG_MS = 20_000
"""In which a ping is answered."""


class ServingError(HeteroTissueError):
    """The server did not answer, or could not do what was asked; another try may help."""


class LoadError(ServingError):
    """The server answers that it cannot load a model."""


class Server:
    """A Triton server's models.

    Args:
        url: host:port of its gRPC service.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = InferenceServerClient(url)

    def wait(self, seconds: float) -> None:
        """Wait until the server is ready. Raises `ServingError` if it is not in time."""
        deadline = time.monotonic() + seconds
        while not self.ready():
            if time.monotonic() > deadline:
                raise ServingError(f"the Triton server at {self.url} is not ready")
            time.sleep(0.1)

    def ready(self) -> bool:
        """Whether the server answers and takes requests."""
        try:
            return bool(self.client.is_server_ready(client_timeout=ANSWER_SECONDS))
        except InferenceServerException:
            return False

    def serves(self, model: str, number: int) -> bool:
        """Whether a deployment is loaded."""
        try:
            name = served_name(model, number, "sampler")
            return bool(self.client.is_model_ready(name, client_timeout=ANSWER_SECONDS))
        except InferenceServerException as error:
            raise _told(error) from error

    def load(self, model: str, number: int, size: int) -> None:
        """Load all parts of a deployment and make one image with it.

        Raises:
            LoadError: the server refuses a part; its reason is named.
            ServingError: the server is gone, or cannot make an image.
        """
        for part in PARTS:
            name = served_name(model, number, part)
            try:
                self.client.load_model(name, client_timeout=LOAD_SECONDS)
            except InferenceServerException as error:
                lost = error.status() in {"StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED"}
                kind = ServingError if lost else LoadError
                raise kind(f"Triton cannot load {name}: {error.message()}") from error
        blank = np.zeros((1, size, size), np.uint8)
        TritonSampler(self.url, model, number).generate(blank, [[]], [0], steps=1)

    def retire(self, model: str, kept: Container[int]) -> None:
        """Unload a model's deployments but for those `kept`; each first ends what it has begun.

        Raises:
            ServingError: the server is gone, or one does not end in time.
        """
        try:
            found = self.client.get_model_repository_index(client_timeout=ANSWER_SECONDS).models
            loaded = {deployed_number(each.name, model) for each in found if each.state == "READY"}
            for number in loaded:
                if number is not None and number not in kept:
                    # The sampler first: what it has begun still needs the others.
                    for part in reversed(PARTS):
                        self._unload(served_name(model, number, part))
        except InferenceServerException as error:
            raise _told(error) from error

    def _unload(self, name: str) -> None:
        self.client.unload_model(name, client_timeout=ANSWER_SECONDS)
        deadline = time.monotonic() + LOAD_SECONDS
        while self._state(name) == "UNLOADING":
            if time.monotonic() > deadline:
                raise ServingError(f"Triton does not end what {name} has begun")
            time.sleep(0.1)

    def _state(self, name: str) -> str:
        index = self.client.get_model_repository_index(client_timeout=ANSWER_SECONDS)
        return next((each.state for each in index.models if each.name == name), "UNAVAILABLE")


class TritonSampler:
    """Generates images on a Triton server; as `shared.diffusion.model_store.Sampler` does here.

    Args:
        url: host:port of the server's gRPC service.
        model: name of the model.
        number: of the deployment.
    """

    def __init__(self, url: str, model: str, number: int) -> None:
        self._url = url
        self._name = served_name(model, number, "sampler")

    def generate(
        self,
        labels: UInt8,
        crops: Sequence[Sequence[Crop]],
        seeds: Sequence[int],
        *,
        callback: Callable[[int], None] | None = None,
        **options: Any,
    ) -> UInt8:
        """Ask for images and wait for them; see `HeteroTissuePipeline.__call__`.

        May be called from many threads. A call that is given up is cancelled on the server.

        Raises:
            InputError: the server refuses the request, or it is of too many images.
            ServingError: the server is gone or fails.
        """
        if len(labels) > MOST_IMAGES:
            raise InputError(
                f"{len(labels)} images at a time are more than the {MOST_IMAGES} that Triton "
                "takes: make the batches smaller"
            )
        names = ("crops", "crop_labels", "crop_sides", "crop_corners")
        tensors: dict[str, NDArray[Any]] = dict(zip(names, pack_crops(crops), strict=True))
        tensors |= {"labels": labels, "seeds": np.array(seeds, np.int64)[:, None]}
        answers: SimpleQueue[tuple[Any, InferenceServerException | None]] = SimpleQueue()
        client = InferenceServerClient(self._url, channel_args=_channel())
        # A stream of its own, since an error on a stream does not say whose it is.
        client.start_stream(lambda result, error: answers.put((result, error)))
        waiting = False
        try:
            client.async_stream_infer(
                self._name,
                [_input(name, value) for name, value in tensors.items()],
                parameters=options | {"progress": callback is not None},
            )
            waiting = True
            while True:
                result, error = answers.get()
                step = None if error is not None else result.as_numpy("step")
                waiting = step is not None
                if error is not None:
                    raise _told(error)
                if step is None:
                    images: UInt8 = result.as_numpy("images")
                    return images
                if callback is not None:
                    callback(int(step[0, 0]))
        except InferenceServerException as error:
            raise _told(error) from error
        finally:
            # Only what is given up: of a stream that is cancelled, a thread stays for good.
            client.stop_stream(cancel_requests=waiting)
            client.close()


def _channel() -> list[tuple[str, int]]:
    """What gRPC is told; `KeepAliveOptions` leaves the time for an answer at a minute."""
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


def _told(error: InferenceServerException) -> HeteroTissueError:
    text = str(error.message())
    if text.startswith(REFUSED):
        return InputError(text.removeprefix(REFUSED))
    return ServingError(f"Triton: {text}")
