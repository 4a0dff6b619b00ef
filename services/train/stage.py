"""The train stage: it plans a run as segments, runs one segment, and publishes the model.

A run trains the VAE, then its decoder alone, then computes latents, then trains the denoiser, and
at last a layout model, if the recipe has one.
Each training is cut into segments of `segment_steps` steps; a segment is a phase of its own,
because it resumes from the checkpoint of the previous one.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from services.train.checks import check_networks
from services.train.latents import SHARD_REGIONS
from services.train.publish import publish
from services.train.run import KINDS, Run
from services.train.segments import (
    autoencoder_segment,
    denoiser_segment,
    latents_segment,
    layouts_segment,
)
from services.train.tensorboard import FILE_NAME, event_log
from shared.contracts.regions import SourceSlides
from shared.contracts.train import TrainRequest
from shared.datasets.slide_sources import slides_of
from shared.errors import InputError
from shared.jobs import Context, Plan, Shard, Stage


class TrainStage(Stage[TrainRequest]):
    """Trains and publishes a model version."""

    name: ClassVar[str] = "train"
    request = TrainRequest

    def plan(self, request: TrainRequest, context: Context) -> Plan:
        run, recipe = Run.open(request, context), request.recipe
        if run.regions.rule.size < recipe.size:
            raise InputError(
                f"regions of {request.regions!r} are {run.regions.rule.size} px, smaller than the "
                f"recipe's {recipe.size} px: ingest with a larger region size, or lower `size`"
            )
        if not run.regions.of_split("train"):
            elsewhere = any(part.regions for part in run.regions.slides)
            raise InputError(
                f"region set {request.regions!r} has no region in its train split: "
                + ("its slides are held back; add slides" if elsewhere
                   else run.regions.rule.why_none())
            )  # fmt: skip
        run.check_warm_start()
        run.perceptual_loss()
        check_networks(run)
        known = SourceSlides(slides=tuple(slides_of(run.store, run.regions, "train")))
        run.store.put_json(run.key("slides.json"), known)  # a cohort's splits may change
        run.forget_pause()  # of an earlier submission, which may have read other regions
        vae, decoder, denoiser, layouts = (
            [(_shard(kind, *span),) for span in _spans(run.steps[kind], recipe.segment_steps)]
            for kind in KINDS
        )
        latents = _latent_shards(run)
        return Plan(
            phases=(
                *vae,
                *(decoder if recipe.vae.decoder_steps else ()),
                *([latents] if latents else ()),
                *denoiser,
                *(layouts if recipe.layouts.steps else ()),
            )
        )

    def run(self, request: TrainRequest, shard: Shard, context: Context) -> dict[str, Any]:
        torch.manual_seed(request.seed)
        run = Run.open(request, context)
        start, stop = int(str(shard.args["start"])), int(str(shard.args["stop"]))
        kind, report = str(shard.args["kind"]), context.progress
        if kind == "latents":
            return {"views": latents_segment(run, shard.id, start, stop, report)}
        if kind == "denoiser":
            latents = [part.id for part in _latent_shards(run)]
            progress = denoiser_segment(run, latents, start, stop, report)
        elif kind == "layouts":
            progress = layouts_segment(run, start, stop, report)
        else:
            progress = autoencoder_segment(run, kind, start, stop, report)
        lines = "".join(json.dumps(row) + "\n" for row in progress.metrics)
        run.store.put(run.key(f"metrics/{shard.id}.jsonl"), lines.encode())
        waited = progress.waiting / progress.seconds if progress.seconds else 0.0
        return {"steps": stop - start, "waiting_for_data": round(waited, 4)}

    def finish(
        self, request: TrainRequest, done: Mapping[str, dict[str, Any]], context: Context
    ) -> dict[str, Any]:
        run = dataclasses.replace(Run.open(request, context), device="cpu")
        rows: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
        for shard in done:
            kind = shard.partition("-")[0]
            if kind in rows:
                lines = run.store.get(run.key(f"metrics/{shard}.jsonl")).splitlines()
                rows[kind] += [json.loads(line) for line in lines]
        run.store.put(run.key(f"tensorboard/{FILE_NAME}"), event_log(rows))
        model = publish(run, rows)
        return {
            "model": str(request.model_ref),
            **({"classes never learnt": list(model.unlearnt)} if model.unlearnt else {}),
            **{f"{kind}_loss": round(v[-1]["loss"], 4) for kind, v in rows.items() if v},
        }


def _spans(total: int, length: int) -> list[tuple[int, int]]:
    """Cut the range from 0 to `total` into spans (start, stop) of at most `length`.

    A total of 0 gives one empty span, because a segment without steps still writes its network.
    """
    if not total:
        return [(0, 0)]
    return [(start, min(start + length, total)) for start in range(0, total, length)]


def _shard(kind: str, start: int, stop: int) -> Shard:
    return Shard(id=f"{kind}-{stop:08d}", args={"kind": kind, "start": start, "stop": stop})


def _latent_shards(run: Run) -> tuple[Shard, ...]:
    """Return the shards that compute latents; no shards if the recipe has no fixed views."""
    if not run.recipe.denoiser.views:
        return ()
    regions = sum(part.regions for part in run.regions.of_split("train"))
    return tuple(_shard("latents", *span) for span in _spans(regions, SHARD_REGIONS))
