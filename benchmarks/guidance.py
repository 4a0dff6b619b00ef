"""Which guidance and how many steps?  python benchmarks/guidance.py STORE MODEL

Images of the val split's maps and crops, held against the val split, for each setting;
nothing is chosen on the test split. Prints a table of the Fréchet distance, its share of the
floor (one half of the val slides to the other).
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from services.evaluate.fidelity import Features, fidelity
from services.gateway.study import MEASURES, counterparts
from services.gateway.submit import Target, run_or_fail
from shared.contracts.train import ModelRecord, model_key
from shared.datasets import DatasetIndex, load_dataset
from shared.encoders import load_encoder
from shared.imaging.regions import RegionIndex, load_region_set

SETTINGS: tuple[tuple[int, float, float], ...] = (
    (10, 1.0, 1.0),
    (10, 1.25, 1.25),
    (10, 1.5, 1.5),
    (10, 2.0, 2.0),
    (10, 1.25, 1.0),
    (10, 1.0, 1.25),
    (6, 1.25, 1.25),
    (20, 1.25, 1.25),
)
"""(steps, guidance of the map, guidance of the crops)."""


def make(target: Target, model: str, version: str, images: int, setting: tuple[Any, ...]) -> str:
    """Make a setting's dataset and return its name."""
    steps, guidance_map, guidance_crops = setting
    name = f"guidance-{steps}-{guidance_map}-{guidance_crops}".replace(".", "_")
    request = counterparts(
        name, model, version, "val", images,
        steps=steps, guidance_map=guidance_map, guidance_crops=guidance_crops,
    )  # fmt: skip
    run_or_fail(target, request)
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("model", help="<name>/<version>")
    parser.add_argument("--images", type=int, default=228)
    parser.add_argument("--encoders", nargs="+", default=MEASURES[:1])
    given = parser.parse_args()
    target = Target.of(given.store, "")
    model, _, version = given.model.partition("/")
    version = version or "1"
    names = [make(target, model, version, given.images, setting) for setting in SETTINGS]
    record = target.store.get_model(model_key(model, version), ModelRecord)
    real = RegionIndex(target.store, load_region_set(target.store, record.regions), "val")
    table: list[list[str]] = [[str(value) for value in setting] for setting in SETTINGS]
    for encoder_name in given.encoders:
        encoder = load_encoder(encoder_name, target.store)
        images = np.stack([real[number].image for number in range(len(real))])
        test = Features(encoder.encode(images)[:, None], np.array(real.slides))
        sources = {}
        for name in names:
            samples = DatasetIndex(target.store, load_dataset(target.store, name))
            made = [samples[number] for number in range(len(samples))]
            slides = np.array([sample.provenance.map_slide for sample in made])
            features = encoder.encode(np.stack([sample.image for sample in made]))
            sources[name] = Features(features[:, None], slides)
        found = fidelity(test, sources, 0)
        for line, name in zip(table, names, strict=True):
            row = found["rows"][name]
            line.append(f"{row['frechet']:.2f} ({row['over_floor']:.2f} of floor)")
    print(" | ".join(["steps", "guidance_map", "guidance_crops", *given.encoders]))
    print("\n".join(" | ".join(line) for line in table))


if __name__ == "__main__":
    main()
