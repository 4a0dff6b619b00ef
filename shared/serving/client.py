"""Talking to a Triton server: generating images, and loading models."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from shared.diffusion.crops import Crop
from shared.errors import HeteroTissueError, InputError
from shared.serving.contract import MOST_IMAGES, PARTS, REFUSED, served_name
from shared.serving.sampling import pack_crops

UInt8 = NDArray[np.uint8]

LOAD_SECONDS = 600.0
"""A TensorRT plan takes minutes to load where CUDA has to compile."""


class ServingError(HeteroTissueError):
    """The server did not answer, or could not do what was asked; another try may help."""


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
            return bool(self.client.is_server_ready())
        except InferenceServerException:
            return False

    def serves(self, model: str, number: int) -> bool:
        """Whether a version is loaded."""
        try:
            name = served_name(model, "sampler")
            return bool(self.client.is_model_ready(name, str(number)))
        except InferenceServerException as error:
            raise _told(error) from error

    def load(self, model: str, number: int, size: int) -> None:
        """Load all parts of a version and make one image with it.

        The version before stays loaded until its requests have ended.

        Raises:
            ServingError: a part cannot be loaded; the server's reason is named.
        """
        for part in PARTS:
            name = served_name(model, part)
            try:
                self.client.load_model(name, client_timeout=LOAD_SECONDS)
                if not self.client.is_model_ready(name, str(number)):
                    raise ServingError(f"Triton loaded {name}, but not its version {number}")
            except InferenceServerException as error:
                raise ServingError(f"Triton cannot load {name}: {error.message()}") from error
        blank = np.zeros((1, size, size), np.uint8)
        TritonSampler(self.url, model, number).generate(blank, [[]], [0], steps=1)


class TritonSampler:
    """Generates images on a Triton server; as `shared.diffusion.model_store.Sampler` does here.

    Args:
        url: host:port of the server's gRPC service.
        model: name of the model.
        number: Triton's number of the version.
    """

    def __init__(self, url: str, model: str, number: int) -> None:
        self._url = url
        self._name = served_name(model, "sampler")
        self._number = str(number)

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
        client = InferenceServerClient(self._url)
        # A stream of its own, since an error on a stream does not say whose it is.
        client.start_stream(lambda result, error: answers.put((result, error)))
        try:
            client.async_stream_infer(
                self._name,
                [_input(name, value) for name, value in tensors.items()],
                model_version=self._number,
                parameters=options | {"progress": callback is not None},
            )
            while True:
                result, error = answers.get()
                if error is not None:
                    raise _told(error)
                step = result.as_numpy("step")
                if step is None:
                    images: UInt8 = result.as_numpy("images")
                    return images
                if callback is not None:
                    callback(int(step[0, 0]))
        except InferenceServerException as error:
            raise _told(error) from error
        finally:
            client.stop_stream(cancel_requests=True)


def _input(name: str, value: NDArray[Any]) -> InferInput:
    given = InferInput(name, value.shape, np_to_triton_dtype(value.dtype))
    given.set_data_from_numpy(np.ascontiguousarray(value))
    return given


def _told(error: InferenceServerException) -> HeteroTissueError:
    text = str(error.message())
    if text.startswith(REFUSED):
        return InputError(text.removeprefix(REFUSED))
    return ServingError(f"Triton: {text}")
