"""The deploy stage: write a deployment into Triton's model repository, then load it."""

from __future__ import annotations

import importlib.resources
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from services.deploy.plan import Built, Profile, build_plan
from shared.contracts.deploy import Deployment, DeployRequest, served_model
from shared.contracts.models import ModelRecord
from shared.diffusion.autoencoder import vae_factor
from shared.diffusion.model_store import load_model
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.errors import InputError
from shared.jobs import Context, Plan, Shard, Stage
from shared.models import read_model
from shared.serving.client import LoadError, Server
from shared.serving.deployments import deployments
from shared.serving.plan_memory import plan_rows, row_bytes
from shared.serving.protocol import (
    MAX_ROWS,
    PARTS,
    Part,
    engine_tensors,
    max_rows,
    part_configs,
    planned,
)
from shared.serving.repository import Repository, add_deployment, drop_deployment
from shared.settings import settings
from shared.storage import Store

WEIGHTS = "diffusion_pytorch_model.safetensors"


class DeployStage(Stage[DeployRequest]):
    """Deploys model versions on a Triton server."""

    name: ClassVar[str] = "deploy"
    request = DeployRequest

    def plan(self, request: DeployRequest, context: Context) -> Plan:
        read_model(context.store, request.model_ref)
        return Plan(phases=((Shard(id="repository", args={}),),))

    def run(self, request: DeployRequest, shard: Shard, context: Context) -> dict[str, Any]:
        loaded = load_model(context.store, request.model_ref, "cpu")
        record, pipeline = loaded.record, loaded.pipeline
        factor = vae_factor(pipeline.vae)
        limit = _max_tokens(record, factor) if request.engine == "tensorrt" else None
        entry = Deployment(
            number=request.number,
            version=request.version,
            engine=request.engine,
            sha256=record.sha256,
            max_tokens=limit,
            factor=factor,
        )
        with tempfile.TemporaryDirectory(prefix="htd-deploy-") as name:
            folder = Path(name)
            pipeline.vae.save_pretrained(folder / "vae", safe_serialization=True)
            pipeline.denoiser.save_pretrained(folder / "denoiser", safe_serialization=True)
            files = {part: _files(part, folder) for part in PARTS}
            built: Built | None = None
            rows, row = MAX_ROWS, 0
            if request.engine == "tensorrt":
                row = _row_bytes(record, pipeline, factor)
                rows = plan_rows(row)
                for part in planned(record.size):
                    most = rows if part == "denoiser" else max_rows(part, record.size)
                    plan, built = _plan(part, pipeline, record, folder, context.store, most)
                    files[part] = {"model.plan": plan}
            configs = part_configs(
                record,
                pipeline,
                model=served_model(context.tenant, request.model),
                number=request.number,
                engine=request.engine,
                device=request.device,
                gpu=built.gpu if built else "",
                max_tokens=limit,
                rows=rows,
            )
            add_deployment(_repository(context), entry, request.model, configs, files)
        plans = (
            f" {built.tensorrt}, plans for {built.gpu}, up to {rows} rows of about "
            f"{rows * row / 1e9:.1f} GB"
            if built
            else ""
        )
        return {"number": request.number, "engine": request.engine + plans}

    def finish(
        self, request: DeployRequest, done: Mapping[str, dict[str, Any]], context: Context
    ) -> dict[str, Any]:
        config = settings()
        if config.triton_url:
            record = read_model(context.store, request.model_ref)
            server = Server(config.triton_url)
            served = served_model(context.tenant, request.model)
            try:
                server.load(served, request.number, record.size)
            except LoadError as error:
                drop_deployment(_repository(context), request.model, request.number)
                raise InputError(
                    f"{error}, {done['repository']['engine']}. "
                    "The previous deployment is still served"
                ) from error
            kept = deployments(context.store, request.model)
            server.retire(served, {each.number for each in kept})
        return {
            "model": str(request.model_ref),
            "number": request.number,
            "loaded": bool(config.triton_url),
        }


def _repository(context: Context) -> Repository:
    return Repository(context.store, context.root, context.tenant)


def _plan(
    part: Part,
    pipeline: HeteroTissuePipeline,
    record: ModelRecord,
    folder: Path,
    store: Store,
    rows: int,
) -> tuple[Path, Built]:
    """Export a network as ONNX, and build its TensorRT plan for this machine's GPU.

    Args:
        part: the network.
        pipeline, record: the model version.
        folder: receives graph and plan.
        store: keeps plans.
        rows: rows of the largest batch.

    Returns:
        The plan's file, and the TensorRT version and GPU that it needs.
    """
    from services.deploy.onnx_graph import export_onnx

    graph, plan = folder / f"{part}.onnx", folder / f"{part}.plan"
    dtype = torch.bfloat16 if record.recipe.precision == "bf16" else torch.float32
    export_onnx(pipeline, part, record.size, graph, dtype)
    inputs, _ = engine_tensors(part, pipeline, record.size)
    free = free_profile(part, record, vae_factor(pipeline.vae))
    body, built = build_plan(graph, inputs, rows, free, store)
    plan.write_bytes(body)
    return plan, built


def _max_tokens(record: ModelRecord, factor: int) -> int | None:
    """Return the largest number of crop tokens of a plan; None if crops are no tokens."""
    regional = record.recipe.denoiser.conditioning == "regional"
    return free_profile("denoiser", record, factor)[2] if regional else None


def _row_bytes(record: ModelRecord, pipeline: HeteroTissuePipeline, factor: int) -> int:
    """Estimate the GPU memory that a row of the denoiser's plan takes, bytes."""
    inputs, _ = engine_tensors("denoiser", pipeline, record.size)
    tokens = free_profile("denoiser", record, factor)[2]
    return row_bytes(record.recipe.denoiser, inputs, record.size // factor, tokens)


def free_profile(part: Part, record: ModelRecord, factor: int) -> Profile:
    """Return the optimization profile of a network's varying dimension.

    For the encoder that dimension is the side of a crop in pixels, at most the side of the image.
    For the denoiser it is the number of tokens: 1 for "no crop", and at most the tokens of a crop
    of the largest side for every class, or of one crop as large as the image.

    Args:
        part: the network.
        record: the model version.
        factor: pixels per latent pixel.
    """
    side = math.ceil(record.size * record.recipe.denoiser.crop_max / factor)
    if part == "vae_encoder":
        return factor, side * factor, record.size
    usual = 1 + len(record.classes) * side**2
    largest = max(usual, 1 + (record.size // factor) ** 2)
    return 2, max(2, usual // 2), largest


def _files(part: Part, folder: Path) -> dict[str, Path]:
    """Return the files of a part (see `PARTS`) for Triton's version folder: name → file to copy."""
    weights = folder / ("vae" if part.startswith("vae") else "denoiser")
    program = importlib.resources.files("triton_models") / part / "model.py"
    return {
        "model.py": Path(str(program)),
        "config.json": weights / "config.json",
        WEIGHTS: weights / WEIGHTS,
    }
