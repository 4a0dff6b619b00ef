"""Which conditioning is worth its cost?

    python benchmarks/conditioning.py STORE REGIONS regional=2000 concat=3000 embedding=2000

Each argument is <conditioning>=<training steps>. Trains a denoiser for each on the recipe's
pretrained autoencoder, with all other settings equal. Each model then makes images of the val
split's maps: without a condition, with the map, and with map and crops. Prints the Fréchet
distances, faithfulness, stain error and crop retrieval of the images, and the seconds of the
training. Nothing is chosen on the test split.
"""

from __future__ import annotations

import argparse
import json

from heterotissue.recipes import load_recipe
from heterotissue.running import Target, run_or_fail
from heterotissue.study import IMAGENET_ENCODERS, counterparts
from shared.contracts.evaluate import EvaluateRequest, Report, report_key
from shared.contracts.models import ModelRef
from shared.contracts.recipe import Recipe
from shared.contracts.regions import RegionSet, region_set_key
from shared.contracts.synthesize import Condition
from shared.contracts.train import TrainRequest
from shared.errors import InputError
from shared.jobs import Ledger

ROWS: tuple[Condition, ...] = ("none", "map", "both")


def recipe_of(name: str, conditioning: str, steps: int) -> Recipe:
    """Return a recipe with another conditioning; its pretrained autoencoder is not trained further.

    Args:
        name: name of the recipe.
        conditioning: conditioning of the denoiser.
        steps: training steps of the denoiser.

    Raises:
        InputError: the recipe has no pretrained autoencoder, so latents would be noise.
    """
    known = load_recipe(name)
    if known.vae.pretrained is None:
        raise InputError(
            f"recipe {name!r} trains its own autoencoder: give one with `vae.pretrained`"
        )
    recipe = known.model_dump() | {"vae": known.untrained().vae.model_dump()}
    recipe["denoiser"] |= {"conditioning": conditioning, "steps": steps}
    return Recipe.model_validate(recipe)


def measure(target: Target, model: str, images: int) -> Report:
    """Make a model's dataset under each condition, and measure them against the val split."""
    rows = {row: f"{model}-{row}" for row in ROWS}
    for row, dataset in rows.items():
        run_or_fail(target, counterparts(dataset, ModelRef(model, "1"), "val", images, row))
    run_or_fail(
        target,
        EvaluateRequest(
            report=model, dataset=rows["both"], real_test=("val",), ablation=rows,
            encoders=IMAGENET_ENCODERS, segmenter_encoder=IMAGENET_ENCODERS[0], segmenter_steps=200,
        ),
    )  # fmt: skip
    return target.store.get_model(report_key(model, "report.json"), Report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("regions")
    parser.add_argument("candidates", nargs="+", help="<conditioning>=<steps>")
    parser.add_argument("--recipe", default="cpu-small")
    given = parser.parse_args()
    target = Target.of(given.store, "")
    record = target.store.get_model(region_set_key(given.regions), RegionSet)
    images = sum(part.regions for part in record.of_split("val"))
    table = {}
    for candidate in given.candidates:
        conditioning, _, steps = candidate.partition("=")
        name = f"{conditioning}-{steps}"
        request = TrainRequest(
            run=name,
            regions=given.regions,
            recipe=recipe_of(given.recipe, conditioning, int(steps)),
            model=name,
        )
        run_or_fail(target, request)
        job = Ledger(target.store).identify(request)
        markers = [
            target.store.get_json(key) for key in target.store.list(f"jobs/{job}/done/denoiser")
        ]
        report = measure(target, name, images)
        looks = report.appearance
        table[name] = {
            "training_seconds": round(sum(marker["seconds"] for marker in markers)),
            "frechet": {
                part.encoder: {row: round(part.rows[row].frechet, 2) for row in (*ROWS, "floor")}
                for part in report.fidelity
            },
            "faithfulness": report.faithfulness and round(report.faithfulness.mean_iou, 3),
            "stain_error": looks and {row: round(looks.stain[row], 4) for row in ROWS},
            "retrieval_top1": looks and looks.retrieval["both"].top1,
        }
        print(json.dumps({name: table[name]}, indent=1), flush=True)
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
