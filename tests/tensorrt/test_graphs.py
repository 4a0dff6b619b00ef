"""The graphs that are served, against TensorRT's own parser and builder, which need no GPU.

Both come from TensorRT for RTX, which has the interfaces of TensorRT and is a wheel.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from services.deploy.onnx_graph import export_onnx
from services.deploy.plan import build, rows_profile
from services.deploy.stage import free_profile
from shared.contracts.base import Classes
from shared.contracts.models import ModelRecord
from shared.contracts.recipe import Recipe
from shared.diffusion.autoencoder import make_vae, vae_factor
from shared.diffusion.conditionings import make_denoiser
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.serving.protocol import Part, engine_tensors, max_rows, part_configs, planned
from shared.storage import DirectoryStore
from shared.yaml_files import read_mapping

trt = pytest.importorskip("tensorrt_rtx", reason="make test-tensorrt installs it")

CLASSES = Classes.of("stroma", "tumor")
RECIPES = Path(__file__).parents[2] / "services" / "train" / "recipes"
KINDS = {"FLOAT": "TYPE_FP32", "UINT8": "TYPE_UINT8"}


def toy(conditioning: str, architecture: str) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "toy", "size": 32, "precision": "bf16",
            "vae": {"architecture": architecture, "channels": (8, 16), "latent_channels": 4},
            "denoiser": {
                "conditioning": conditioning, "channels": (32, 64), "attention": (False, True),
                "condition_channels": 32,
            },
        }
    )  # fmt: skip


def check_part(recipe: Recipe, part: Part, folder: Path) -> None:
    """Export a part as it is served; hold the graph against Triton's configuration; build it."""
    torch.manual_seed(0)
    vae = make_vae(recipe.vae).eval()
    pipeline = HeteroTissuePipeline(vae, make_denoiser(recipe.denoiser, recipe.size, CLASSES, vae))
    record = ModelRecord(
        model="toy", version="1", classes=CLASSES, size=recipe.size, mpp=0.5, regions="none",
        run="none", recipe=recipe, warm_start=None, sha256={},
    )  # fmt: skip
    path = folder / f"{part}.onnx"
    export_onnx(pipeline, part, recipe.size, path, torch.bfloat16)
    onnx.checker.check_model(path, full_check=True)

    configs = part_configs(
        record, pipeline, model="local.toy", number=1, engine="tensorrt", device="auto"
    )
    config = model_config_pb2.ModelConfig()
    text_format.Parse(configs[part], config)
    graph = onnx.load(path, load_external_data=False).graph
    for declared, found in ((config.input, graph.input), (config.output, graph.output)):
        assert [tensor.name for tensor in declared] == [tensor.name for tensor in found]
        for tensor, value in zip(declared, found, strict=True):
            kind = value.type.tensor_type
            name = onnx.TensorProto.DataType.Name(kind.elem_type)
            assert KINDS[name] == model_config_pb2.DataType.Name(tensor.data_type)
            dims = [each.dim_value or -1 for each in kind.shape.dim]
            reshaped = [] if tensor.HasField("reshape") else list(tensor.dims)
            assert dims == [-1, *reshaped]

    rows, factor = max_rows(part, recipe.size), vae_factor(vae)
    assert config.max_batch_size == rows
    inputs, _ = engine_tensors(part, pipeline, recipe.size)
    plan = build(
        trt, path, inputs, rows_profile(rows), free_profile(part, record, factor),
        DirectoryStore(folder / "store"), "timings",
    )  # fmt: skip
    assert plan


@pytest.mark.parametrize(
    ("conditioning", "architecture"),
    [
        ("regional", "kl"),
        ("concat", "kl"),
        pytest.param("regional", "dc", marks=pytest.mark.tensorrt),
    ],
)
@pytest.mark.parametrize("part", planned(32))
def test_graphs_are_valid_fit_the_configuration_and_can_be_built(
    conditioning: str, architecture: str, part: Part, tmp_path: Path
) -> None:
    if conditioning == "concat" and part != "denoiser":
        pytest.skip("the autoencoder does not depend on the conditioning")
    check_part(toy(conditioning, architecture), part, tmp_path)


@pytest.mark.tensorrt
@pytest.mark.parametrize("name", ["cpu-small", "base"])
@pytest.mark.parametrize("part", planned(224))
def test_graphs_of_recipes_can_be_built(name: str, part: Part, tmp_path: Path) -> None:
    check_part(Recipe.model_validate(read_mapping(RECIPES / f"{name}.yaml")), part, tmp_path)
