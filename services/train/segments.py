"""The segments of a run, which train its networks, or compute latents."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from services.train.data import Batches, MapBatches
from services.train.ending import told_to_end
from services.train.latents import encode_views, latents_key, read_latents
from services.train.loop import Progress, Training
from services.train.objectives import (
    DecoderObjective,
    DenoiserObjective,
    LayoutObjective,
    StudentObjective,
    VaeObjective,
)
from services.train.run import Run, put_folder
from services.train.warm_start import start_denoiser, start_vae
from shared.arrays import UInt8
from shared.datasets.samples import draw_crops
from shared.diffusion.autoencoder import Autoencoder, encode_raw, make_vae, to_unit
from shared.diffusion.gpu import prepare_vae
from shared.diffusion.layouts import FOLDER
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.imaging.sheet import colorize, sheet, sheet_png
from shared.seeds import image_seed

NORMALIZATION_IMAGES = 256
SAMPLE_SHEET_IMAGES = 8

log = logging.getLogger(__name__)

Report = Callable[[int, int, str], None]
"""Called with the number of finished steps, the number of all steps, and a note."""


def autoencoder_segment(run: Run, kind: str, start: int, stop: int, report: Report) -> Progress:
    """Train the VAE (kind 'vae') or its decoder alone ('decoder'); the last segment writes it."""
    objective: VaeObjective | DecoderObjective
    if kind == "vae":
        vae = make_vae(run.recipe.vae)
        weights = run.starting_weights()
        if weights is not None:  # the denoiser of a warm start needs the latents it was trained on
            start_vae(vae, weights)
        objective = VaeObjective(vae, run.recipe.vae, run.device)
    else:
        vae = run.read_vae("vae")
        objective = DecoderObjective(vae, run.perceptual_loss(), run.device)
    training = Training(objective, run.settings(kind))
    index = run.index()
    batches = Batches(index, run.recipe.vae.crop, None, (run.request.seed, 1))
    progress = _train(run, training, kind, batches, start, stop, report)
    if stop < run.steps[kind]:
        run.save_checkpoint(training, kind, start, stop)
        return progress
    training.use_average()
    if kind == "vae" and run.recipe.vae.steps:
        whole = Batches(index, run.recipe.size, None, (run.request.seed, 2))
        _normalize(vae, whole, run.device)
    with tempfile.TemporaryDirectory(prefix="htd-vae-") as folder:
        vae.save_pretrained(folder, safe_serialization=True)
        put_folder(run.store, run.key(f"{kind}/"), Path(folder))
    return progress


def latents_segment(run: Run, shard: str, start: int, stop: int, report: Report) -> int:
    """Encode the views of the regions `start` to `stop` - 1, and return the number of views."""
    vae = run.finished_vae().to(run.device).eval()
    prepare_vae(vae, run.recipe.precision)
    batches = run.denoiser_batches()
    data = encode_views(
        vae,
        batches,
        (start, stop),
        run.device,
        run.recipe.precision,
        lambda done, total: report(done, total, ""),
    )
    run.store.put(latents_key(run.request.run, shard), data)
    return (stop - start) * batches.views_per_region


def denoiser_segment(
    run: Run, latent_shards: list[str], start: int, stop: int, report: Report
) -> Progress:
    """Train the denoiser on the latents of `latent_shards`, or on images if there are none."""
    recipe, vae = run.recipe.denoiser, run.finished_vae()
    denoiser = run.new_denoiser(vae)
    weights = run.starting_weights()
    if weights is not None:
        start_denoiser(denoiser, weights, run.regions.classes.names)
    objective = DenoiserObjective(denoiser, vae, run.device)
    if recipe.student is not None:
        teacher = copy.deepcopy(denoiser)
        objective = StudentObjective(denoiser, teacher, vae, recipe.student, run.device)
    training = Training(objective, run.settings("denoiser"))
    latents = read_latents(run.store, run.request.run, latent_shards) if latent_shards else None
    batches = run.denoiser_batches(latents)
    progress = _train(run, training, "denoiser", batches, start, stop, report)
    run.save_checkpoint(training, "denoiser", start, stop)
    every = run.recipe.sample_every
    if stop // every > start // every or stop == recipe.steps:
        training.use_average()
        picture = _sample_sheet(run, HeteroTissuePipeline(vae, denoiser), batches)
        model = str(run.request.model_ref)
        run.store.put(run.key(f"samples/{stop:08d}.png"), sheet_png(picture, model))
    return progress


def layouts_segment(run: Run, start: int, stop: int, report: Report) -> Progress:
    """Train the layout model on the label maps of the regions; the last segment writes it."""
    recipe, seed = run.recipe.layouts, run.request.seed
    objective = LayoutObjective(recipe, len(run.regions.classes), run.device)
    training = Training(objective, run.settings("layouts"))
    batches = MapBatches(run.index(), run.recipe.size, None, (seed, 4))
    progress = _train(run, training, "layouts", batches, start, stop, report)
    if stop < recipe.steps:
        run.save_checkpoint(training, "layouts", start, stop)
        return progress
    training.use_average()
    with tempfile.TemporaryDirectory(prefix="htd-layouts-") as folder:
        objective.model.save_pretrained(folder, safe_serialization=True)
        put_folder(run.store, run.key(f"{FOLDER}/"), Path(folder))
    return progress


def _train(
    run: Run,
    training: Training,
    kind: str,
    batches: Batches,
    start: int,
    stop: int,
    report: Report,
) -> Progress:
    """Train a segment to its end, from where it was paused if it was.

    Raises:
        HandedBackError: the process was told to end; the segment is paused.
    """
    before = run.resume(training, kind, start, stop)
    done = before.step - start
    with told_to_end() as told:
        progress = training.run(
            batches,
            before.step,
            stop,
            lambda steps, note: report(done + steps, stop - start, note),
            told,
        )
        progress.metrics = before.metrics + progress.metrics
        if told():
            run.pause(training, kind, stop, progress)
            log.warning("told to end: %s goes on at step %d of %d", kind, progress.step, stop)
            told()  # no process ends before the first has written
    run.forget_pause()
    return progress


def _normalize(vae: Autoencoder, batches: Batches, device: str) -> None:
    """Set the VAE's scale, and its shift if it has one, so that latents have variance 1."""
    with torch.no_grad():
        images = [batches.draw(step, 32).images for step in range(NORMALIZATION_IMAGES // 32)]
        latents = torch.cat(
            [encode_raw(vae, to_unit(torch.from_numpy(part).to(device))) for part in images]
        )
    vae.register_to_config(scaling_factor=1 / max(float(latents.std()), 1e-6))
    if "shift_factor" in vae.config:
        vae.register_to_config(shift_factor=float(latents.mean()))


def _sample_sheet(run: Run, pipeline: HeteroTissuePipeline, batches: Batches) -> UInt8:
    """Draw maps, crops, synthetic and real images of a few regions, the same in every segment."""
    batch = batches.draw(2**31, SAMPLE_SHEET_IMAGES)
    seeds = [image_seed(run.request.seed, number) for number in range(SAMPLE_SHEET_IMAGES)]
    images = pipeline(
        batch.labels, batch.crops, seeds, run.recipe.sampling, precision=run.recipe.precision
    )
    classes = run.regions.classes
    maps = [colorize(mask, classes.colors) for mask in batch.labels]
    canvases = [draw_crops(crops, batch.images.shape[1]) for crops in batch.crops]
    return sheet(
        [maps, canvases, list(images), list(batch.images)],
        ["label map", "crops", "synthetic", "real"],
        [],
        legend=list(zip(classes.names, classes.colors, strict=True)),
    )
