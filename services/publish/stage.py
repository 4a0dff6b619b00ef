"""The publish stage: write Triton's model repository, then let the server load it."""

from __future__ import annotations

import importlib.resources
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import torch

from shared.contracts.serving import PublishRequest, ServedVersion
from shared.contracts.train import ModelRecord, model_key
from shared.diffusion.model_store import load_model
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.jobs import Context, Plan, Shard, Stage
from shared.serving.client import Server
from shared.serving.contract import PARTS, Part, denoiser_tensors, part_configs
from shared.serving.repository import add_version
from shared.settings import settings
from shared.storage import ObjectStore

WEIGHTS = "diffusion_pytorch_model.safetensors"


class PublishStage(Stage[PublishRequest]):
    """Puts a model version on a Triton server."""

    name: ClassVar[str] = "publish"
    request = PublishRequest

    def plan(self, request: PublishRequest, context: Context) -> Plan:
        context.store.get_model(model_key(request.model, request.version), ModelRecord)
        return Plan(phases=((Shard(id="repository", args={}),),))

    def run(self, request: PublishRequest, shard: Shard, context: Context) -> dict[str, Any]:
        sampler = load_model(context.store, request.model, request.version, "cpu")
        record, pipeline = sampler.record, sampler.pipeline
        configs = part_configs(record, pipeline, engine=request.engine, device=request.device)
        entry = ServedVersion(
            number=request.number,
            version=request.version,
            engine=request.engine,
            sha256=record.sha256,
        )
        with tempfile.TemporaryDirectory(prefix="htd-publish-") as name:
            folder = Path(name)
            pipeline.vae.save_pretrained(folder / "vae", safe_serialization=True)
            pipeline.denoiser.save_pretrained(folder / "denoiser", safe_serialization=True)
            files = {part: _files(part, folder) for part in PARTS}
            if request.engine == "tensorrt":
                plan = _plan(pipeline, record, folder, context.store)
                files["denoiser"] = {"model.plan": plan}
            add_version(context.store, entry, request.model, configs, files)
        return {"number": request.number}

    def finish(
        self, request: PublishRequest, done: dict[str, dict[str, Any]], context: Context
    ) -> dict[str, Any]:
        config = settings()
        if config.triton_url:
            record = context.store.get_model(model_key(request.model, request.version), ModelRecord)
            Server(config.triton_url).load(request.model, request.number, record.size)
        return {
            "model": f"{request.model}/{request.version}",
            "number": request.number,
            "loaded": bool(config.triton_url),
        }


def _plan(
    pipeline: HeteroTissuePipeline, record: ModelRecord, folder: Path, store: ObjectStore
) -> Path:
    """Export the denoiser and build its plan for this machine's GPU."""
    from services.publish.onnx_graph import export_onnx
    from services.publish.plan import build_plan

    graph, plan = folder / "denoiser.onnx", folder / "model.plan"
    dtype = torch.bfloat16 if record.recipe.precision == "bf16" else torch.float32
    export_onnx(pipeline, record.size, graph, dtype)
    inputs, _ = denoiser_tensors(pipeline, record.size)
    plan.write_bytes(build_plan(graph, inputs, store))
    return plan


def _files(part: Part, folder: Path) -> dict[str, Path]:
    """Files of a part's version folder: its program and its weights."""
    weights = folder / ("vae" if part.startswith("vae") else "denoiser")
    program = importlib.resources.files("triton_models") / part / "model.py"
    return {
        "model.py": Path(str(program)),
        "config.json": weights / "config.json",
        WEIGHTS: weights / WEIGHTS,
    }
