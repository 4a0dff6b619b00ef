"""The train stage: segments of VAE training, latents, segments of denoiser training, publishing."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from services.train.card import model_card
from services.train.data import Batches, Float16
from services.train.latents import SHARD_REGIONS, encode_views, latents_key, read_latents
from services.train.loop import Progress, Settings, Training
from services.train.objectives import (
    DecoderObjective,
    DenoiserObjective,
    StudentObjective,
    VaeObjective,
)
from services.train.perceptual import PerceptualLoss
from services.train.tensorboard import FILE_NAME, event_log
from services.train.warm_start import (
    Weights,
    read_weights,
    start_denoiser,
    start_vae,
    student_of,
)
from shared.contracts.models import ModelRecord
from shared.contracts.recipe import Recipe
from shared.contracts.regions import RegionSet
from shared.contracts.train import TrainRequest, training_key
from shared.datasets.samples import draw_crops
from shared.diffusion.autoencoder import Autoencoder, encode_raw, make_vae, read_vae, to_unit
from shared.diffusion.conditionings import make_denoiser
from shared.diffusion.gpu import prepare_vae
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.errors import InputError
from shared.imaging.codec import encode_png
from shared.imaging.region_sets import RegionIndex, load_region_set
from shared.imaging.sheet import colorize, sheet
from shared.jobs import Context, Plan, Shard, Stage
from shared.seeds import image_seed
from shared.storage import ObjectStore, sha256_file

NORMALIZATION_IMAGES = 256
SAMPLES = 8


class TrainStage(Stage[TrainRequest]):
    """Trains and publishes a model version."""

    name: ClassVar[str] = "train"
    request = TrainRequest

    def plan(self, request: TrainRequest, context: Context) -> Plan:
        record = load_region_set(context.store, request.regions)
        recipe = request.recipe
        if record.rule.size < recipe.size:
            raise InputError(
                f"regions of {request.regions!r} are {record.rule.size} px, smaller than the "
                f"recipe's {recipe.size}: ingest with a larger region size, or lower `size`"
            )
        if not record.of_split("train"):
            raise InputError(f"region set {request.regions!r} has no region in its train split")
        _starting_weights(context.store, request)
        _perceptual(request, context.store, context.device)
        vae, decoder, denoiser = (
            [(_shard(kind, *span),) for span in _segments(steps, recipe.segment_steps)]
            for kind, steps in _steps(recipe).items()
        )
        latents = _latent_shards(record, recipe)
        return Plan(
            phases=(
                *vae,
                *(decoder if recipe.vae.decoder_steps else ()),
                *([latents] if latents else ()),
                *denoiser,
            )
        )

    def run(self, request: TrainRequest, shard: Shard, context: Context) -> dict[str, Any]:
        torch.set_num_threads(context.threads)
        torch.manual_seed(request.seed)
        request = _as_taught(request, context.store)
        record = load_region_set(context.store, request.regions)
        start, stop = int(str(shard.args["start"])), int(str(shard.args["stop"]))
        kind = str(shard.args["kind"])
        if kind == "latents":
            return _encode(request, record, shard.id, (start, stop), context)
        if kind == "denoiser":
            progress = _denoiser_segment(request, record, start, stop, context)
        else:
            progress = _autoencoder_segment(request, record, kind, start, stop, context)
        context.store.put(
            training_key(request.run, f"metrics/{shard.id}.jsonl"),
            "".join(json.dumps(row) + "\n" for row in progress.metrics).encode(),
        )
        waited = progress.waiting / progress.seconds if progress.seconds else 0.0
        return {"steps": stop - start, "waiting_for_data": round(waited, 4)}

    def finish(
        self, request: TrainRequest, done: dict[str, dict[str, Any]], context: Context
    ) -> dict[str, Any]:
        torch.set_num_threads(context.threads)
        request = _as_taught(request, context.store)
        store, record = context.store, load_region_set(context.store, request.regions)
        rows: dict[str, list[dict[str, float]]] = {kind: [] for kind in _steps(request.recipe)}
        for shard in done:
            kind = shard.partition("-")[0]
            if kind in rows:
                lines = store.get(training_key(request.run, f"metrics/{shard}.jsonl")).splitlines()
                rows[kind] += [json.loads(line) for line in lines]
        store.put(training_key(request.run, f"tensorboard/{FILE_NAME}"), event_log(rows))
        vae = _load_vae(store, request)
        denoiser = make_denoiser(request.recipe.denoiser, request.recipe.size, record.classes, vae)
        objective = DenoiserObjective(denoiser, vae, "cpu")
        training = Training(objective, _settings(request, "denoiser", "cpu"))
        training.load(store.get(_checkpoint(request, "denoiser", request.recipe.denoiser.steps)))
        training.use_average()
        _publish(store, request, record, HeteroTissuePipeline(vae, denoiser), rows)
        return {
            "model": str(request.model_ref),
            **{f"{kind}_loss": round(v[-1]["loss"], 4) for kind, v in rows.items() if v},
        }


def _steps(recipe: Recipe) -> dict[str, int]:
    """Steps of each training of a run, in their order."""
    return {
        "vae": recipe.vae.steps,
        "decoder": recipe.vae.decoder_steps,
        "denoiser": recipe.denoiser.steps,
    }


def _segments(steps: int, length: int) -> list[tuple[int, int]]:
    """Cut 0…steps into segments; no steps are one empty segment, which writes the start."""
    if not steps:
        return [(0, 0)]
    return [(start, min(start + length, steps)) for start in range(0, steps, length)]


def _shard(kind: str, start: int, stop: int) -> Shard:
    return Shard(id=f"{kind}-{stop:08d}", args={"kind": kind, "start": start, "stop": stop})


def _latent_shards(record: RegionSet, recipe: Recipe) -> tuple[Shard, ...]:
    """The shards that compute the latents of all views; none where none are kept."""
    if not recipe.denoiser.views:
        return ()
    regions = sum(part.regions for part in record.of_split("train"))
    return tuple(_shard("latents", *span) for span in _segments(regions, SHARD_REGIONS))


def _encode(
    request: TrainRequest, record: RegionSet, shard: str, span: tuple[int, int], context: Context
) -> dict[str, Any]:
    vae = _load_vae(context.store, request).to(context.device).eval()
    prepare_vae(vae, request.recipe.precision)
    batches = _denoiser_batches(request, record, context.store)
    data = encode_views(
        vae, batches, span, context.device, request.recipe.precision, context.progress
    )
    context.store.put(latents_key(request.run, shard), data)
    return {"views": (span[1] - span[0]) * batches.views_per_region}


def _denoiser_batches(
    request: TrainRequest, record: RegionSet, store: ObjectStore, latents: Float16 | None = None
) -> Batches:
    index = RegionIndex(store, record, "train")
    recipe = request.recipe
    return Batches(index, recipe.size, recipe.denoiser, (request.seed, 3), latents)


def _checkpoint(request: TrainRequest, kind: str, step: int) -> str:
    return training_key(request.run, f"checkpoints/{kind}-{step:08d}.safetensors")


def _settings(request: TrainRequest, kind: str, device: str) -> Settings:
    recipe, steps = request.recipe, _steps(request.recipe)[kind]
    own = recipe.denoiser if kind == "denoiser" else recipe.vae
    rate = recipe.vae.decoder_learning_rate if kind == "decoder" else own.learning_rate
    return Settings(
        batch_size=own.batch_size,
        learning_rate=rate,
        steps=steps,
        warmup=min(own.warmup, steps // 10 + 1),
        ema=own.ema,
        grad_clip=own.grad_clip,
        precision=recipe.precision,
        seed=request.seed + list(_steps(recipe)).index(kind),
        device=device,
    )


def _starting_weights(store: ObjectStore, request: TrainRequest) -> Weights | None:
    return read_weights(store, request.warm_start) if request.warm_start else None


def _as_taught(request: TrainRequest, store: ObjectStore) -> TrainRequest:
    """The request; but a denoiser that it does not train stays the student, or none, that it is."""
    if request.recipe.denoiser.steps:
        return request
    own = {"student": student_of(store, request.warm_start) if request.warm_start else None}
    denoiser = request.recipe.denoiser.model_copy(update=own)
    recipe = request.recipe.model_copy(update={"denoiser": denoiser})
    return request.model_copy(update={"recipe": recipe})


def _continue(
    training: Training, request: TrainRequest, kind: str, start: int, store: ObjectStore
) -> None:
    if start:
        training.load(store.get(_checkpoint(request, kind, start)))


def _keep(
    training: Training, request: TrainRequest, kind: str, start: int, stop: int, store: ObjectStore
) -> None:
    """Write the checkpoint at `stop`; of the older ones only that at `start` stays."""
    store.put(_checkpoint(request, kind, stop), training.save())
    before = start - request.recipe.segment_steps
    if before > 0:
        store.delete(_checkpoint(request, kind, before))


def _autoencoder_segment(
    request: TrainRequest, record: RegionSet, kind: str, start: int, stop: int, context: Context
) -> Progress:
    """Train the VAE, or (kind 'decoder') its decoder alone; the last segment writes it."""
    recipe, store, device = request.recipe.vae, context.store, context.device
    objective: VaeObjective | DecoderObjective
    if kind == "vae":
        vae = make_vae(recipe)
        weights = _starting_weights(store, request)
        if weights is not None:  # a denoiser needs the latents that it has learnt
            start_vae(vae, weights)
        objective = VaeObjective(vae, device)
    else:
        vae = _read_vae(store, training_key(request.run, "vae/"))
        objective = DecoderObjective(vae, _perceptual(request, store, device), device)
    training = Training(objective, _settings(request, kind, device))
    _continue(training, request, kind, start, store)
    index = RegionIndex(store, record, "train")
    batches = Batches(index, recipe.crop, None, (request.seed, 1))
    progress = training.run(
        batches, start, stop, lambda done, note: context.progress(done, stop - start, note)
    )
    if stop < _steps(request.recipe)[kind]:
        _keep(training, request, kind, start, stop, store)
        return progress
    training.use_average()
    if kind == "vae" and recipe.steps:
        _normalize(vae, Batches(index, request.recipe.size, None, (request.seed, 2)), device)
    with tempfile.TemporaryDirectory(prefix="htd-vae-") as folder:
        vae.save_pretrained(folder, safe_serialization=True)
        _put_folder(store, training_key(request.run, f"{kind}/"), Path(folder))
    return progress


def _perceptual(request: TrainRequest, store: ObjectStore, device: str) -> PerceptualLoss | None:
    recipe = request.recipe.vae
    if not recipe.decoder_steps or recipe.perceptual is None:
        return None
    return PerceptualLoss(recipe.perceptual, store, device)


def _normalize(vae: Autoencoder, batches: Batches, device: str) -> None:
    """Set scale, and shift where there is one, so that training latents have variance 1."""
    with torch.no_grad():
        images = [batches.draw(step, 32).images for step in range(NORMALIZATION_IMAGES // 32)]
        latents = torch.cat(
            [encode_raw(vae, to_unit(torch.from_numpy(part).to(device))) for part in images]
        )
    vae.register_to_config(scaling_factor=1 / max(float(latents.std()), 1e-6))
    if "shift_factor" in vae.config:
        vae.register_to_config(shift_factor=float(latents.mean()))


def _put_folder(store: ObjectStore, prefix: str, folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.put_file(prefix + path.relative_to(folder).as_posix(), path)


def _load_vae(store: ObjectStore, request: TrainRequest) -> Autoencoder:
    """Load the run's finished autoencoder."""
    kind = "decoder" if request.recipe.vae.decoder_steps else "vae"
    return _read_vae(store, training_key(request.run, f"{kind}/"))


def _read_vae(store: ObjectStore, prefix: str) -> Autoencoder:
    with tempfile.TemporaryDirectory(prefix="htd-vae-") as folder:
        for name in ("config.json", "diffusion_pytorch_model.safetensors"):
            (Path(folder) / name).write_bytes(store.get(prefix + name))
        return read_vae(Path(folder))


def _denoiser_segment(
    request: TrainRequest, record: RegionSet, start: int, stop: int, context: Context
) -> Progress:
    recipe = request.recipe.denoiser
    vae = _load_vae(context.store, request)
    denoiser = make_denoiser(request.recipe.denoiser, request.recipe.size, record.classes, vae)
    weights = _starting_weights(context.store, request)
    if weights is not None:
        start_denoiser(denoiser, weights, record.classes.names)
    objective = DenoiserObjective(denoiser, vae, context.device)
    if recipe.student is not None:
        teacher = copy.deepcopy(denoiser)
        objective = StudentObjective(denoiser, teacher, vae, recipe.student, context.device)
    training = Training(objective, _settings(request, "denoiser", context.device))
    _continue(training, request, "denoiser", start, context.store)
    shards = [shard.id for shard in _latent_shards(record, request.recipe)]
    latents = read_latents(context.store, request.run, shards) if shards else None
    batches = _denoiser_batches(request, record, context.store, latents)
    progress = training.run(
        batches, start, stop, lambda done, note: context.progress(done, stop - start, note)
    )
    _keep(training, request, "denoiser", start, stop, context.store)
    every = request.recipe.sample_every
    if stop // every > start // every or stop == recipe.steps:
        training.use_average()
        picture = _samples(HeteroTissuePipeline(vae, denoiser), batches, record, request)
        key = training_key(request.run, f"samples/{stop:08d}.png")
        context.store.put(key, encode_png(picture))
    return progress


def _samples(
    pipeline: HeteroTissuePipeline, batches: Batches, record: RegionSet, request: TrainRequest
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Draw the same few regions at every step: map, crops, sample, the real region."""
    batch = batches.draw(2**31, SAMPLES)
    seeds = [image_seed(request.seed, number) for number in range(SAMPLES)]
    options = request.recipe.sampling.model_dump()
    precision = request.recipe.precision
    made = pipeline(batch.labels, batch.crops, seeds, precision=precision, **options)
    maps = [colorize(mask, record.classes.colors) for mask in batch.labels]
    canvases = [draw_crops(crops, batch.images.shape[1]) for crops in batch.crops]
    return sheet(
        [maps, canvases, list(made), list(batch.images)],
        ["label map", "crops", "synthetic", "real"],
        [],
        legend=list(zip(record.classes.names, record.classes.colors, strict=True)),
    )


def _publish(
    store: ObjectStore,
    request: TrainRequest,
    record: RegionSet,
    pipeline: HeteroTissuePipeline,
    rows: dict[str, list[dict[str, float]]],
) -> None:
    prefix = request.model_ref.prefix
    with tempfile.TemporaryDirectory(prefix="htd-model-") as name:
        folder = Path(name)
        pipeline.save_pretrained(folder, safe_serialization=True)
        weights = {
            path.relative_to(folder).as_posix(): sha256_file(path)
            for path in sorted(folder.rglob("*.safetensors"))
        }
        model = ModelRecord(
            model=request.model,
            version=request.version,
            classes=record.classes,
            size=request.recipe.size,
            mpp=record.rule.mpp,
            regions=request.regions,
            run=request.run,
            recipe=request.recipe,
            warm_start=request.warm_start,
            sha256=weights,
        )
        (folder / "README.md").write_text(model_card(model, record, rows), encoding="utf-8")
        _put_folder(store, prefix, folder)
    store.put_json(request.model_ref.key, model)
