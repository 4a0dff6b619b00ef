"""The ONNX graph of a denoiser against PyTorch."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor

from services.deploy.onnx_graph import DenoiserGraph, example, export_onnx, largest_error
from shared.contracts.base import Classes
from shared.contracts.recipe import DenoiserRecipe, VaeRecipe
from shared.diffusion.autoencoder import make_vae
from shared.diffusion.conditionings import make_denoiser
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.serving.protocol import Part, engine_tensors

KL = VaeRecipe(channels=(8, 16), latent_channels=4)
DC = VaeRecipe(architecture="dc", channels=(8, 16), latent_channels=4)


def toy(conditioning: str, vae_recipe: VaeRecipe = KL) -> HeteroTissuePipeline:
    vae = make_vae(vae_recipe).eval()
    recipe = DenoiserRecipe.model_validate(
        {
            "conditioning": conditioning, "channels": (32, 64), "attention": (False, True),
            "condition_channels": 32,
        }
    )  # fmt: skip
    denoiser = make_denoiser(recipe, 32, Classes.of("stroma", "tumor"), vae).eval()
    return HeteroTissuePipeline(vae, denoiser)


@pytest.mark.parametrize("conditioning", ["concat", "regional"])
def test_onnx_computes_what_pytorch_does(tmp_path: Path, conditioning: str) -> None:
    pipeline = toy(conditioning)
    export_onnx(pipeline, "denoiser", 32, tmp_path / "denoiser.onnx")
    export_onnx(pipeline, "denoiser", 32, tmp_path / "again.onnx")
    # The cache of plans goes by its bytes.
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "denoiser.onnx").read_bytes()
    assert largest_error(pipeline, "denoiser", 32, tmp_path / "denoiser.onnx") < 1e-4


@pytest.mark.parametrize("vae", [KL, DC], ids=["kl", "dc"])
@pytest.mark.parametrize(("part", "bound"), [("vae_encoder", 1e-4), ("vae_decoder", 1)])
def test_graphs_of_the_autoencoder_compute_what_pytorch_does(
    tmp_path: Path, part: Part, bound: float, vae: VaeRecipe
) -> None:
    pipeline = toy("regional", vae)
    export_onnx(pipeline, part, 32, tmp_path / "part.onnx")
    assert largest_error(pipeline, part, 32, tmp_path / "part.onnx") <= bound
    graph = onnx.load(tmp_path / "part.onnx").graph
    bytes_from = [each.op_type for each in graph.node if each.output[0] == graph.output[0].name]
    if part == "vae_decoder":
        assert bytes_from == ["Cast"]  # TensorRT has bytes at the border only


def test_a_graph_of_half_precision_keeps_the_time_and_its_weights_types(tmp_path: Path) -> None:
    pipeline = toy("regional")
    inputs, _ = engine_tensors("denoiser", pipeline, 32)
    graph = DenoiserGraph(pipeline.denoiser, [each.name for each in inputs[2:]], torch.bfloat16)
    seen: list[Tensor] = []
    graph.denoiser.unet.time_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    sample, _, *condition = example(inputs, 1, 5)
    with torch.inference_mode():
        velocity = graph(sample, torch.tensor([0.9]), *condition)
    assert velocity.dtype == torch.float32
    assert seen[0].tolist() == pytest.approx([900.0], abs=0.01)  # in bf16: 896 or 900
    export_onnx(pipeline, "denoiser", 32, tmp_path / "denoiser.onnx", torch.bfloat16)
    proto = onnx.load(tmp_path / "denoiser.onnx")
    kinds = {each.data_type for each in proto.graph.initializer if len(each.dims) == 4}
    assert kinds == {onnx.TensorProto.BFLOAT16}
    given = {each.type.tensor_type.elem_type for each in [*proto.graph.input, *proto.graph.output]}
    assert given == {onnx.TensorProto.FLOAT}
