"""Publishing: the networks of a finished run become a model version in the store."""

from __future__ import annotations

import tempfile
from pathlib import Path

from services.train.card import model_card
from services.train.loop import Training
from services.train.objectives import DenoiserObjective
from services.train.run import Run, put_folder
from shared.contracts.models import ModelRecord
from shared.diffusion.layouts import FOLDER
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.models import weights_origin
from shared.storage import sha256, sha256_file


def trained_pipeline(run: Run) -> HeteroTissuePipeline:
    """Load the pipeline of a finished run, with the moving average of the denoiser's weights."""
    vae = run.finished_vae()
    denoiser = run.new_denoiser(vae)
    training = Training(DenoiserObjective(denoiser, vae, run.device), run.settings("denoiser"))
    run.load_last_checkpoint(training, "denoiser")
    training.use_average()
    return HeteroTissuePipeline(
        vae, denoiser, run.recipe.sampling.model_dump(), run.recipe.precision
    )


def publish(run: Run, rows: dict[str, list[dict[str, float]]]) -> ModelRecord:
    """Write the model version: the pipeline's folder, the card, and last the record.

    Args:
        run: the finished run, on the CPU.
        rows: training (one of `KINDS`) → rows of metrics, for the card.

    Returns:
        The record of the version.
    """
    request = run.request
    with tempfile.TemporaryDirectory(prefix="htd-model-") as name:
        folder = Path(name)
        trained_pipeline(run).save_pretrained(folder, safe_serialization=True)
        if run.recipe.layouts.steps:
            run.read_folder(FOLDER, folder / FOLDER)
        weights, configurations = (
            {path.relative_to(folder).as_posix(): sha256_file(path) for path in sorted(found)}
            for found in (folder.rglob("*.safetensors"), folder.rglob("*.json"))
        )
        model = ModelRecord(
            model=request.model,
            version=request.version,
            classes=run.regions.classes,
            size=run.recipe.size,
            mpp=run.regions.rule.mpp,
            regions=request.regions,
            run=request.run,
            recipe=run.recipe,
            warm_start=request.warm_start,
            sha256=weights,
            configurations=configurations,
            slides=sha256(run.store.get(run.key("slides.json"))),
            unlearnt=run.unlearnt(),
        )
        card = model_card(model, run.regions, rows, weights_origin(run.store, model))
        (folder / "README.md").write_text(card, encoding="utf-8")
        put_folder(run.store, request.model_ref.prefix, folder)
    run.store.put_json(request.model_ref.key, model)
    return model
