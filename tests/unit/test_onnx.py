"""The ONNX graph of a denoiser against PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.publish.onnx_graph import export_onnx, largest_error
from shared.contracts.base import Classes
from shared.contracts.train import DenoiserRecipe, VaeRecipe
from shared.diffusion.autoencoder import make_vae
from shared.diffusion.conditionings import make_denoiser
from shared.diffusion.pipeline import HeteroTissuePipeline


@pytest.mark.parametrize("conditioning", ["concat", "regional"])
def test_onnx_computes_what_pytorch_does(tmp_path: Path, conditioning: str) -> None:
    vae = make_vae(VaeRecipe(channels=(8, 16), latent_channels=4)).eval()
    recipe = DenoiserRecipe.model_validate(
        {
            "conditioning": conditioning, "channels": (32, 64), "attention": (False, True),
            "condition_channels": 32,
        }
    )  # fmt: skip
    denoiser = make_denoiser(recipe, Classes.of("stroma", "tumor"), vae).eval()
    pipeline = HeteroTissuePipeline(vae, denoiser)
    export_onnx(pipeline, 32, tmp_path / "denoiser.onnx")
    assert largest_error(pipeline, 32, tmp_path / "denoiser.onnx") < 1e-4
