"""A toy training: its recipe, its plan, a run of it, and what that leaves in the store."""

from __future__ import annotations

from services.train.stage import TrainStage
from shared.contracts.recipe import DenoiserRecipe, Recipe, VaeRecipe
from shared.contracts.train import TrainRequest
from shared.jobs import Context, Ledger, run_job
from shared.settings import Settings
from shared.storage import Store

RECIPE = Recipe(
    name="toy",
    size=32,
    segment_steps=2,
    sample_every=4,
    vae=VaeRecipe(
        architecture="dc",
        channels=(8, 16),
        latent_channels=4,
        steps=4,
        decoder_steps=2,
        perceptual="efficientnet-lite1",
        batch_size=2,
        crop=32,
        learning_rate=1e-3,
        decoder_learning_rate=1e-5,
    ),
    denoiser=DenoiserRecipe(
        channels=(32, 64),
        attention=(False, True),
        condition_channels=32,
        steps=4,
        batch_size=2,
        views=8,
    ),
)


def train(store: Store, recipe: Recipe = RECIPE, **fields: object) -> None:
    """Train version 1 of model `m` on the region set `toy`, unless the fields say else."""
    names = {"run": "r", "regions": "toy", "model": "m"}
    request = TrainRequest.model_validate({**names, "recipe": recipe, **fields})
    ledger = Ledger(store)
    status = run_job(
        ledger, TrainStage(), ledger.submit(request, replace=True), config=Settings(threads=1)
    )
    assert status.state == "done", status.failed


def outputs(store: Store) -> dict[str, bytes]:
    """All objects of a store but those that tell of its jobs."""
    kept = [key for key in store.list() if not key.startswith(("jobs/", "open-jobs/", "names/"))]
    return {key: store.get(key) for key in kept}


def plan(store: Store, recipe: Recipe, warm_start: str, regions: str = "toy") -> None:
    """Plan a training from a checkpoint; it raises what is wrong with that."""
    context = Context(store, threads=1, device="cpu", report=lambda *_: None)
    request = TrainRequest(
        run="w", regions=regions, recipe=recipe, model="w", warm_start=warm_start
    )
    TrainStage().plan(request, context)
