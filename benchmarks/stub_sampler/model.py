"""A stub of the sampler: it returns grey images after a fixed time, for all requests at once."""

import asyncio
from typing import Any

import torch
import triton_python_backend_utils as pb_utils
from torch.utils.dlpack import from_dlpack

SECONDS = 2.0
"""Duration of every request."""


class TritonPythonModel:
    """A Triton model with the sampler's inputs and outputs; see `shared.serving.protocol`."""

    async def execute(self, requests: list[Any]) -> None:
        await asyncio.gather(*(self._answer(request) for request in requests))

    async def _answer(self, request: Any) -> None:
        sender = request.get_response_sender()
        labels = from_dlpack(pb_utils.get_input_tensor_by_name(request, "labels").to_dlpack())
        await asyncio.sleep(SECONDS)
        images = torch.full((*labels.shape, 3), 128, dtype=torch.uint8)
        answer = pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("images", images)])
        sender.send(answer, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
