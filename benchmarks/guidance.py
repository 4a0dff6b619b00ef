"""Which guidance, when, and how many steps?  python benchmarks/guidance.py STORE MODEL

Images of the val split's maps and crops, held against the val split, for each setting; with
`--condition map` of the maps alone, which may want another. Nothing is chosen on the test
split. Prints a table of the Fréchet distance to other regions of the crops' own slides and its
ratio to the floor, of the stain error against the crops, and of how often a crop is found again
by its staining; the last row is the real regions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from services.evaluate.appearance import crop_pairs, retrieval, stain_errors
from services.evaluate.data import SyntheticPairs
from services.evaluate.fidelity import Features, fidelity
from services.gateway.cli import published
from services.gateway.study import MEASURES, counterparts
from services.gateway.submit import Target, run_or_fail
from shared.contracts.synthesize import Condition
from shared.contracts.train import GuidanceScale, ModelRecord
from shared.datasets import DatasetIndex, load_dataset
from shared.diffusion.guidance import Guidance
from shared.encoders import load_encoder
from shared.imaging.regions import RegionIndex, load_region_set

SETTINGS: tuple[tuple[int, float, float, float, float], ...] = (
    (10, 1.0, 1.0, 0.0, 1.0),
    (10, 1.5, 1.5, 0.0, 1.0),
    (10, 1.25, 1.25, 0.25, 0.75),
    (10, 1.5, 1.5, 0.25, 0.75),
    (10, 1.75, 1.75, 0.25, 0.75),
    (10, 1.5, 1.0, 0.25, 0.75),
    (10, 1.0, 1.5, 0.25, 0.75),
    (6, 1.5, 1.5, 0.25, 0.75),
    (20, 1.5, 1.5, 0.25, 0.75),
)
"""(steps, guidance of the map, of the crops, from time, to time)."""


def make(
    target: Target,
    model: ModelRecord,
    images: int,
    condition: Condition,
    setting: tuple[float, ...],
) -> str:
    """Make a setting's dataset and return its name."""
    steps, of_map, of_crops, low, high = setting
    words = "-".join(map(str, setting)).replace(".", "_")
    name = f"guidance-{model.model}-{model.version}-{condition}-{words}"
    asked = GuidanceScale(
        guidance_map=of_map, guidance_crops=of_crops, guidance_low=low, guidance_high=high
    )
    request = counterparts(
        name, model.model, model.version, "val", images, condition, steps=steps,
        **asked.model_dump(),
    )  # fmt: skip
    run_or_fail(target, request)
    return name


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("model", help="<name>/<version>")
    parser.add_argument("--condition", choices=("both", "map"), default="both")
    parser.add_argument("--encoders", nargs="+", default=MEASURES)
    given = parser.parse_args(arguments)
    target = Target.of(given.store, "")
    store = target.store
    record = published(store, given.model)
    real = RegionIndex(store, load_region_set(store, record.regions), "val")
    settings = [
        setting for setting in SETTINGS if given.condition == "both" or setting[1] == setting[2]
    ]
    names = [make(target, record, len(real), given.condition, setting) for setting in settings]
    made = {name: SyntheticPairs(DatasetIndex(store, load_dataset(store, name))) for name in names}
    pixels = np.stack([real[number].image for number in range(len(real))])
    columns: list[dict[str, str]] = []
    for encoder_name in given.encoders:
        encoder = load_encoder(encoder_name, store)
        sources = {}
        for name, pairs in made.items():
            numbers = range(len(pairs))
            images = np.stack([pairs.pair(number)[0] for number in numbers])
            slides, regions = zip(*map(pairs.origins, numbers), strict=True)
            sources[name] = Features(encoder.encode(images)[:, None], slides, regions)
        truth = Features(
            encoder.encode(pixels)[:, None],
            [(slide,) for slide in real.slides],
            [(key,) for key in real.keys],
        )
        rows = fidelity(truth, sources, 0)["rows"]
        floor = rows["floor"]["own_slides"]
        own = {name: rows[name]["own_slides"] for name in names}
        columns.append({name: f"{value:.1f} ({value / floor:.2f})" for name, value in own.items()})
    staining = stain_errors(store, {"both": made[names[0]]})
    errors = stain_errors(store, made)
    columns.append({name: f"{errors[name]:.3f}" for name in names})
    again = {name: retrieval(crop_pairs(store, made[name], 0), None, 0)["top1"] for name in names}
    columns.append({name: f"{value:.3f}" for name, value in again.items()})
    asked = ("steps", "guidance, map", "guidance, crops", "from", "to", "evaluations")
    print(" | ".join([*asked, *given.encoders, "stain error", "stain retrieval"]))
    for setting, name in zip(settings, names, strict=True):
        steps, of_map, of_crops, low, high = setting
        evaluations = Guidance.of(of_map, of_crops, low=low, high=high).evaluations(steps)
        cells = [str(value) for value in (*setting, evaluations)]
        print(" | ".join([*cells, *(column[name] for column in columns)]))
    chance = retrieval(crop_pairs(store, made[names[0]], 0, real=True), None, 0)["top1"]
    print(f"real regions: stain error {staining['real']:.3f}, stain retrieval {chance:.3f}")


if __name__ == "__main__":
    main()
