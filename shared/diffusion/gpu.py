"""Networks on a GPU: bf16 weights, channels-last layout, small batches as CUDA graphs."""

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
from shared.diffusion.denoiser import KEPT, Denoiser, Tensors
from shared.diffusion.regional import RegionalDenoiser

Forward = Callable[[Tensor, Tensor, Tensors], Tensor]
"""The forward pass of a denoiser, see `Denoiser.forward`."""

CAPTURED_ROWS = 64
"""Rows of the largest batch that runs as a CUDA graph.

In larger batches, kernels run longer than their launch takes, so a graph saves nothing.
"""

MAX_GRAPHS = 32
"""Number of graphs that are kept; the one used longest ago is dropped first."""


def prepare_vae(vae: Autoencoder, precision: str) -> None:
    """Convert a VAE for fast inference: to channels-last layout, and on a GPU to `precision`.

    Args:
        vae: the VAE, on its device.
        precision: 'fp32' or 'bf16'; on a CPU the weights stay fp32, and autocast is used.
    """
    _convert(vae, precision)


def prepare_denoiser(denoiser: Denoiser, precision: str) -> None:
    """Convert a denoiser on a GPU to `precision`, and run its forward pass as CUDA graphs.

    The layers that encode conditions stay fp32, because they run only once per image. On a CPU
    nothing changes.
    """
    if denoiser.device.type == "cpu":
        return
    _convert(denoiser.unet, precision)
    if isinstance(denoiser, RegionalDenoiser):
        denoiser.kept_above = CAPTURED_ROWS
    denoiser.forward = Captured(denoiser.forward)  # type: ignore[method-assign]


def _convert(network: nn.Module, precision: str) -> None:
    network.to(memory_format=torch.channels_last)
    if precision == "bf16" and next(network.parameters()).is_cuda:
        # Not diffusers' own `to`, because it warns about modules that do not exist here.
        nn.Module.to(network, torch.bfloat16)


@dataclass(frozen=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    inputs: Tensors
    output: Tensor


class Captured:
    """A denoiser's forward pass as CUDA graphs, one for each shape of its inputs.

    A batch is padded to a power of two, so that a few graphs serve all batch sizes.

    Args:
        forward: see `Denoiser.forward`.
        max_rows: rows of the largest batch that runs as a graph.
    """

    def __init__(self, forward: Forward, max_rows: int = CAPTURED_ROWS) -> None:
        self.forward = forward
        self.max_rows = max_rows
        self._graphs: OrderedDict[tuple[tuple[str, torch.Size], ...], _Graph] = OrderedDict()
        self._memory = torch.cuda.graph_pool_handle()
        self._lock = Lock()  # because a graph has one buffer for its inputs

    @torch.inference_mode()
    def __call__(self, sample: Tensor, time: Tensor, encoded: Tensors) -> Tensor:
        rows = len(sample)
        if rows > self.max_rows:
            return self.forward(sample, time, encoded)
        # A graph has memory of its own for its inputs: it computes again what was kept.
        known = {name: value for name, value in encoded.items() if not name.startswith(KEPT)}
        given = {"sample": sample, "time": time, **known}
        full = 1 << (rows - 1).bit_length()
        key = tuple((name, value.shape[1:]) for name, value in given.items())
        key = (("rows", torch.Size([full])), *key)
        with self._lock:
            if key not in self._graphs:
                self._graphs[key] = self._capture({n: _padded(v, full) for n, v in given.items()})
                if len(self._graphs) > MAX_GRAPHS:
                    self._graphs.popitem(last=False)
            self._graphs.move_to_end(key)
            captured = self._graphs[key]
            for name, value in given.items():
                captured.inputs[name][:rows].copy_(value)
            captured.graph.replay()
            return captured.output[:rows].clone()

    def _capture(self, given: Tensors) -> _Graph:
        def compute() -> Tensor:
            encoded = {name: v for name, v in given.items() if name not in ("sample", "time")}
            return self.forward(given["sample"], given["time"], encoded)

        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # the first call chooses kernels and allocates memory
            compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            output = compute()
        return _Graph(graph, given, output)


@contextmanager
def uncaptured(denoiser: Denoiser) -> Iterator[None]:
    """Run a denoiser without CUDA graphs, for code that counts or traces its kernels."""
    forward = denoiser.forward
    if isinstance(forward, Captured):
        denoiser.forward = forward.forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        denoiser.forward = forward  # type: ignore[method-assign]


def _padded(value: Tensor, rows: int) -> Tensor:
    """Return a copy of a tensor, padded with zeros to `rows` rows."""
    return functional.pad(value, (0, 0) * (value.ndim - 1) + (0, rows - len(value)))
