"""Networks on a GPU: their weights in bf16, channels last, small batches as CUDA graphs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.diffusion.autoencoder import Autoencoder
from shared.diffusion.denoiser import Denoiser, Tensors

Forward = Callable[[Tensor, Tensor, Tensors], Tensor]

CAPTURED_ROWS = 64
"""Rows up to which a step waits for the launch of its kernels; more keep the GPU busy alone."""
MOST_GRAPHS = 32


def prepare_vae(vae: Autoencoder, precision: str) -> None:
    """Have a VAE compute fast where it is: channels last, and on a GPU in weights of a precision.

    Args:
        precision: 'fp32' or 'bf16'; on a CPU, autocast sees to it.
    """
    _convert(vae, precision)


def prepare_denoiser(denoiser: Denoiser, precision: str) -> None:
    """Have a denoiser on a GPU compute in a precision, and replay what it has computed before.

    What encodes the conditions, once per image, stays fp32. On a CPU nothing changes.
    """
    if denoiser.device.type == "cpu":
        return
    _convert(denoiser.unet, precision)
    denoiser.forward = Captured(denoiser.forward)  # type: ignore[method-assign]


def _convert(network: nn.Module, precision: str) -> None:
    network.to(memory_format=torch.channels_last)
    if precision == "bf16" and next(network.parameters()).is_cuda:
        nn.Module.to(network, torch.bfloat16)  # diffusers' own warns of what it has none of


@dataclass(frozen=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    given: Tensors
    answer: Tensor


class Captured:
    """A denoiser's forward pass as CUDA graphs, one for each shape of its inputs.

    Rows are filled up to a power of two, so that a few graphs serve every batch; larger batches
    than `most_rows` are computed as they are.

    Args:
        forward: see `Denoiser.forward`.
    """

    def __init__(self, forward: Forward, most_rows: int = CAPTURED_ROWS) -> None:
        self.forward = forward
        self.most_rows = most_rows
        self._graphs: OrderedDict[tuple[tuple[str, torch.Size], ...], _Graph] = OrderedDict()
        self._memory = torch.cuda.graph_pool_handle()
        self._lock = Lock()  # a graph has one place for its inputs

    @torch.inference_mode()
    def __call__(self, sample: Tensor, time: Tensor, encoded: Tensors) -> Tensor:
        rows = len(sample)
        if rows > self.most_rows:
            return self.forward(sample, time, encoded)
        given = {"sample": sample, "time": time, **encoded}
        filled = 1 << (rows - 1).bit_length()
        key = tuple((name, value.shape[1:]) for name, value in given.items())
        key = (("rows", torch.Size([filled])), *key)
        with self._lock:
            if key not in self._graphs:
                self._graphs[key] = self._capture({n: _fill(v, filled) for n, v in given.items()})
                if len(self._graphs) > MOST_GRAPHS:
                    self._graphs.popitem(last=False)
            self._graphs.move_to_end(key)
            found = self._graphs[key]
            for name, value in given.items():
                found.given[name][:rows].copy_(value)
            found.graph.replay()
            return found.answer[:rows].clone()

    def _capture(self, given: Tensors) -> _Graph:
        def compute() -> Tensor:
            encoded = {name: v for name, v in given.items() if name not in ("sample", "time")}
            return self.forward(given["sample"], given["time"], encoded)

        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries choose and allocate at their first call
            compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            answer = compute()
        return _Graph(graph, given, answer)


@contextmanager
def uncaptured(denoiser: Denoiser) -> Iterator[None]:
    """Have a denoiser compute every kernel anew, as what counts or traces them needs it."""
    found = denoiser.forward
    if isinstance(found, Captured):
        denoiser.forward = found.forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        denoiser.forward = found  # type: ignore[method-assign]


def _fill(value: Tensor, rows: int) -> Tensor:
    """A copy with rows of zeros at its end, `rows` in all."""
    return functional.pad(value, (0, 0) * (value.ndim - 1) + (0, rows - len(value)))
