"""The sampler: it turns maps, crops and seeds into images, and calls the other models (BLS)."""

import asyncio
from typing import Any

import torch
import triton_python_backend_utils as pb_utils
from pydantic import ValidationError
from torch.utils.dlpack import from_dlpack

from shared.contracts.explaining import explain
from shared.diffusion.conditionings import load_denoiser
from shared.errors import InputError
from shared.serving.engine import Instance
from shared.serving.in_flight import (
    Engines,
    InFlightSampler,
    RequestOptions,
    as_array,
    unpack_crops,
)
from shared.serving.protocol import MAX_ROWS, REFUSED, SAMPLER_INPUTS


class TritonPythonModel:
    """Serves the sampler.

    Its tensors are those of `shared.serving.protocol`, its parameters those of `RequestOptions`.
    A request gets one response with `images`; with the parameter `progress` it also gets a
    response with `step` after every step. A request with `samples` gets their `velocity` instead.
    """

    def initialize(self, args: dict[str, str]) -> None:
        self.own = Instance(args)
        denoiser = load_denoiser(self.own.folder)
        del denoiser.unet  # because the served model `denoiser` runs it
        self.sampler = InFlightSampler(
            denoiser.to(self.own.device),
            Engines(self._denoise, self._encode, self._decode),
            size=int(self.own.parameters["size"]),
            device=self.own.device,
            precision=self.own.precision,
            max_tokens=int(self.own.parameters["max_tokens"])
            if "max_tokens" in self.own.parameters
            else None,
            rows=int(self.own.parameters.get("max_rows", MAX_ROWS)),
        )

    async def execute(self, requests: list[Any]) -> None:
        await asyncio.gather(*(self._answer(request) for request in requests))

    async def _answer(self, request: Any) -> None:
        sender = request.get_response_sender()
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        try:
            given = {tensor.name: self._read(request, tensor.name) for tensor in SAMPLER_INPUTS}
            options = RequestOptions.model_validate_json(request.parameters() or "{}")

            def report(step: int) -> None:
                if options.progress:
                    sender.send(_response("step", torch.tensor([[step]], dtype=torch.int32)))

            crops = unpack_crops(
                *(given[f"crop{name}"] for name in ("s", "_labels", "_sides", "_corners"))
            )

            def wanted() -> bool:
                return not sender.is_cancelled()

            if given["samples"] is not None:
                samples = torch.from_numpy(given["samples"])
                velocity = await self.sampler.velocity(
                    samples, given["labels"], crops, options, wanted
                )
                sender.send(_response("velocity", velocity), flags=final)
                return
            if given["seeds"] is None:
                raise InputError("a request needs seeds, for images, or samples, for a velocity")
            seeds = given["seeds"][:, 0].tolist()
            images = await self.sampler(given["labels"], crops, seeds, options, report, wanted)
            sender.send(_response("images", images), flags=final)
        except asyncio.CancelledError:
            sender.send(_refusal("cancelled", pb_utils.TritonError.CANCELLED), flags=final)
        except (InputError, ValidationError) as error:
            reason = explain(error) if isinstance(error, ValidationError) else str(error)
            sender.send(_refusal(REFUSED + reason, pb_utils.TritonError.INVALID_ARG), flags=final)
        except Exception as error:
            sender.send(
                _refusal(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL),
                flags=final,
            )

    def _read(self, request: Any, name: str) -> Any:
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is None:  # it is optional
            return None
        return as_array(from_dlpack(tensor.to_dlpack()))

    async def _denoise(
        self, sample: torch.Tensor, time: torch.Tensor, encoded: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        return await self._ask(
            "denoiser", "velocity", {"sample": sample, "time": time[:, None], **encoded}
        )

    async def _encode(self, images: torch.Tensor, alone: bool) -> torch.Tensor:
        return await self._ask("vae_encoder", "latents", {"images": images}, alone)

    async def _decode(self, latents: torch.Tensor, alone: bool) -> torch.Tensor:
        return await self._ask("vae_decoder", "images", {"latents": latents}, alone)

    async def _ask(
        self, part: Any, output: str, tensors: dict[str, torch.Tensor], alone: bool = False
    ) -> torch.Tensor:
        request = pb_utils.InferenceRequest(
            model_name=self.own.name.removesuffix("sampler") + part,
            requested_output_names=[output],
            inputs=[pb_utils.Tensor.from_dlpack(n, t.contiguous()) for n, t in tensors.items()],
            parameters={"alone": alone},
        )
        response = await request.async_exec()
        if response.has_error():
            raise RuntimeError(response.error().message())
        answer = pb_utils.get_output_tensor_by_name(response, output)
        # A copy, because Triton frees the tensor. It has to end before, and a GPU copies later.
        copied = from_dlpack(answer.to_dlpack()).to(self.own.device, copy=True)
        if copied.is_cuda:
            torch.cuda.current_stream(copied.device).synchronize()
        return copied


def _response(name: str, value: torch.Tensor) -> Any:
    return pb_utils.InferenceResponse(
        output_tensors=[pb_utils.Tensor.from_dlpack(name, value.contiguous())]
    )


def _refusal(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
