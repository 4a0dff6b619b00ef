"""Which guidance, when, and how many steps?  python benchmarks/guidance.py STORE MODEL

For each setting, makes images from the val split's maps and crops, and compares them with the val
split; with `--condition map` from the maps alone, which may need another setting. Nothing is
chosen on the test split. Prints a table with these columns:

- the Fréchet distance to other regions of the crops' own slides, and its ratio to the floor;
- the stain error against the crops;
- the share of images whose crop is retrieved by its staining;
- faithfulness: the mean IoU of a segmenter, trained on real regions, on the images.

The last line has the figures of the real regions.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from heterotissue.running import Target, run_or_fail
from heterotissue.study import IMAGENET_ENCODERS, counterparts
from services.evaluate.appearance import crop_pairs, find_crops, stain_errors
from services.evaluate.data import Pairs, RealPairs, SyntheticPairs
from services.evaluate.fidelity import FeatureSet, fidelity
from services.evaluate.segmentation import (
    confusion,
    iou_scores,
    make_segmenter,
    train_segmenter,
)
from shared.contracts.base import Classes
from shared.contracts.models import ModelRecord
from shared.contracts.sampling import Sampling
from shared.contracts.synthesize import Condition
from shared.datasets.pseudonyms import source_names
from shared.datasets.samples import DatasetIndex, load_dataset
from shared.diffusion.guidance import Guidance
from shared.encoders import load_encoder
from shared.imaging.region_sets import RegionIndex, load_region_set
from shared.models import find_version, read_model

SEGMENTER_BATCH = 16
ALWAYS = {"guidance_low": 0.0, "guidance_high": 1.0}
SETTINGS = (
    Sampling(guidance_map=1, guidance_crops=1, **ALWAYS),
    Sampling(guidance_map=1.5, guidance_crops=1.5, **ALWAYS),
    Sampling(guidance_map=1.5, guidance_crops=1.5),
    Sampling(),
    Sampling(guidance_map=2.5, guidance_crops=2.5),
    Sampling(guidance_crops=1.5),
    Sampling(staining=0),
    Sampling(staining=1),
    Sampling(steps=6),
    Sampling(steps=20),
)


def asked(setting: Sampling) -> dict[str, float]:
    """Return the fields of a setting that the benchmark varies, by name."""
    return setting.model_dump(exclude={"first_order"})


def make(
    target: Target, model: ModelRecord, images: int, condition: Condition, setting: Sampling
) -> str:
    """Make the dataset of a setting, and return its name."""
    words = "-".join(map(str, asked(setting).values())).replace(".", "_")
    name = f"guidance-{model.model}-{model.version}-{condition}-{words}"
    request = counterparts(name, model.ref, "val", images, condition, **asked(setting))
    run_or_fail(target, request)
    return name


def compared(condition: Condition) -> list[Sampling]:
    """Return the settings that differ under a condition; without crops, several are equal."""
    staining = Sampling().staining
    return [
        each
        for each in SETTINGS
        if condition == "both"
        or (each.guidance_map == each.guidance_crops and each.staining == staining)
    ]


def faithfulness(
    real: RegionIndex,
    train: RegionIndex,
    classes: Classes,
    made: dict[str, SyntheticPairs],
    steps: int,
) -> dict[str, float]:
    """Train a segmenter on real regions, and return its mean IoU on each dataset.

    Args:
        real: held-out real regions, which are scored under the name "real".
        train: real regions to train on.
        classes: classes of the label maps.
        made: name → synthetic dataset.
        steps: training steps of the segmenter.
    """
    size, same = real[0].image.shape[0], np.arange(256, dtype=np.uint8)
    learnt, held = (RealPairs(each, range(len(each)), same) for each in (train, real))
    segmenter = make_segmenter(IMAGENET_ENCODERS[0], classes, 0)
    train_segmenter(
        segmenter, learnt, first=classes.first, size=size, steps=steps, batch=SEGMENTER_BATCH,
        seed=0, device="cpu", progress=lambda done: None,
    )  # fmt: skip
    held_out: dict[str, Pairs] = {**made, "real": held}
    found = {}
    for name, pairs in held_out.items():
        counts = confusion(
            segmenter, pairs, range(len(pairs)), classes=classes, size=size,
            batch=SEGMENTER_BATCH, device="cpu", progress=lambda done: None,
        )  # fmt: skip
        found[name] = float(str(iou_scores(counts, classes.first).mean_iou))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("model", help="<name>/<version>")
    parser.add_argument("--condition", choices=("both", "map"), default="both")
    parser.add_argument("--encoders", nargs="+", default=IMAGENET_ENCODERS)
    parser.add_argument("--segmenter-steps", type=int, default=300)
    given = parser.parse_args(arguments)
    target = Target.of(given.store, "")
    store = target.store
    record = read_model(store, find_version(store, given.model))
    known = load_region_set(store, record.regions)
    real, train = (RegionIndex(store, known, split) for split in ("val", "train"))
    settings = compared(given.condition)
    names = [make(target, record, len(real), given.condition, setting) for setting in settings]
    datasets = {name: load_dataset(store, name) for name in names}
    made = {
        name: SyntheticPairs(DatasetIndex(store, own, partial(source_names, store, own)))
        for name, own in datasets.items()
    }
    pixels = np.stack([real[number].image for number in range(len(real))])
    columns: list[dict[str, str]] = []
    for encoder_name in given.encoders:
        encoder = load_encoder(encoder_name, store)
        sources = {}
        for name, pairs in made.items():
            numbers = range(len(pairs))
            images = np.stack([pairs.pair(number)[0] for number in numbers])
            slides, regions = zip(*map(pairs.origins, numbers), strict=True)
            sources[name] = FeatureSet(encoder.encode(images)[:, None], slides, regions)
        truth = FeatureSet(
            encoder.encode(pixels)[:, None],
            [(slide,) for slide in real.slides],
            [(key,) for key in real.keys],
        )
        rows = fidelity(truth, sources, 0).rows
        own = {name: rows[name].own_slides or math.nan for name in ("floor", *names)}
        floor = own.pop("floor")
        columns.append({name: f"{value:.1f} ({value / floor:.2f})" for name, value in own.items()})
    staining = stain_errors(store, {"both": made[names[0]]})
    errors = stain_errors(store, made)
    columns.append({name: f"{errors[name]:.3f}" for name in names})
    again = {name: find_crops(crop_pairs(store, made[name], 0), None, 0).top1 for name in names}
    columns.append({name: f"{value:.3f}" for name, value in again.items()})
    obeyed = faithfulness(real, train, known.classes, made, given.segmenter_steps)
    columns.append({name: f"{obeyed[name]:.3f}" for name in names})
    heading = [*asked(settings[0]), "evaluations", *given.encoders]
    print(" | ".join([*heading, "stain error", "stain retrieval", "faithfulness"]))
    for setting, name in zip(settings, names, strict=True):
        evaluations = Guidance.from_scale(setting).evaluations(setting.steps)
        cells = [*asked(setting).values(), evaluations]
        print(" | ".join([*map(str, cells), *(column[name] for column in columns)]))
    chance = find_crops(crop_pairs(store, made[names[0]], 0, real=True), None, 0).top1
    print(
        f"real regions: stain error {staining['real']:.3f}, stain retrieval {chance:.3f}, "
        f"faithfulness {obeyed['real']:.3f}"
    )


if __name__ == "__main__":
    main()
