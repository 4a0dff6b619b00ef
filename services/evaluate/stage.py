"""The evaluate stage: features and segmenters side by side, then one report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from services.evaluate.appearance import copying, crop_pairs, retrieval, stain_errors
from services.evaluate.data import (
    Material,
    Pairs,
    SyntheticPairs,
    centre,
    few_of,
    gather,
    spread,
)
from services.evaluate.fidelity import Features, fidelity, nearest
from services.evaluate.frechet import Moments, load_statistics, save_statistics
from services.evaluate.leakage import authenticity
from services.evaluate.reconstruction import reconstruct, reconstruction_scores
from services.evaluate.report import html_report, summarize
from services.evaluate.segmentation import (
    check_encoder,
    confusion,
    iou_scores,
    make_segmenter,
    train_segmenter,
)
from shared.arrays import Float32, UInt8
from shared.contracts.evaluate import EvaluateRequest, report_key
from shared.datasets.samples import draw_crops, recut_crops
from shared.diffusion.model_store import load_model
from shared.encoders import Encoder, load_encoder
from shared.errors import InputError, JobError
from shared.imaging.codec import encode_png
from shared.imaging.region_sets import RegionIndex, load_region_set
from shared.imaging.sheet import colorize, sheet
from shared.jobs import Context, Plan, Shard, Stage
from shared.storage import ObjectStore

FEATURES = "features"
APPEARANCE = "appearance"
TRAINING_SETS = ("real", "synthetic", "both")
FEW_SETS = ("few", "few_both")
COLUMNS = 8
MOST_FEATURES = 10_000  # images per side of a Fréchet distance
MOST_SCORED = 2_000  # images that a segmenter is scored on
ENCODE_BATCH = 64
OUTPUT_STRIDE = 16  # of DeepLabV3+
TURNS = 4  # tissue has no direction: each turn of an image is another view for a Fréchet distance

Change = Callable[[UInt8], UInt8]


class EvaluateStage(Stage[EvaluateRequest]):
    """Measures a synthetic dataset."""

    name: ClassVar[str] = "evaluate"
    request = EvaluateRequest

    def plan(self, request: EvaluateRequest, context: Context) -> Plan:
        material = gather(context.store, request)
        check_encoder(request.segmenter_encoder)
        if material.dataset.size % OUTPUT_STRIDE:
            raise InputError(
                f"DeepLabV3+ needs images whose side is a multiple of {OUTPUT_STRIDE}, not "
                f"{material.dataset.size} px"
            )
        for name in request.encoders:  # a missing or gated one is told of at once
            _encoder(request, name, material, context)
        features = [
            Shard(id=f"{FEATURES}-{number}", args={"encoder": name})
            for number, name in enumerate(request.encoders)
        ]
        segmenters = [
            Shard(id=f"segmenter-{source}-{seed}", args={"source": source, "seed": seed})
            for seed in range(request.seeds)
            for source in (*TRAINING_SETS, *(FEW_SETS if request.few else ()))
        ]
        return Plan(phases=((*features, Shard(id=APPEARANCE), *segmenters),))

    def run(self, request: EvaluateRequest, shard: Shard, context: Context) -> dict[str, Any]:
        torch.set_num_threads(context.threads)
        material = gather(context.store, request)
        if shard.id == APPEARANCE:
            return _appearance(request, material, context)
        if "encoder" in shard.args:
            return _features(request, str(shard.args["encoder"]), material, context)
        return _segmenter(
            request, material, str(shard.args["source"]), int(str(shard.args["seed"])), context
        )

    def finish(
        self, request: EvaluateRequest, done: dict[str, dict[str, Any]], context: Context
    ) -> dict[str, Any]:
        if not done:
            raise JobError(f"report {request.report!r}: nothing could be measured")
        store = context.store
        material = gather(store, request)
        features = [part for name, part in sorted(done.items()) if name.startswith(FEATURES)]
        segmenters = [part for name, part in done.items() if name.startswith("segmenter")]
        report = summarize(request, material, features, done.get(APPEARANCE), segmenters)
        neighbours = features[0]["nearest"] if features else []
        picture = encode_png(_sheet(store, material, neighbours))
        store.put(report_key(request.report, "sheet.png"), picture)
        page = html_report(report, material, picture)
        store.put(report_key(request.report, "report.html"), page.encode())
        store.put_json(report_key(request.report, "report.json"), report)
        return {
            "report": request.report,
            "held_out": report["held_out"],
            "over_floor": {
                part["encoder"]: part["rows"]["dataset"]["over_floor"]
                for part in features
                if part["rows"]
            },
            "mean_iou": {k: v and v["mean_iou"] for k, v in report["segmentation"].items()},
        }


def _encoder(request: EvaluateRequest, name: str, material: Material, context: Context) -> Encoder:
    return load_encoder(
        name,
        context.store,
        weights=request.encoder_weights.get(name),
        device=context.device,
        cohort=material.real.cohort,
    )


def _sources(material: Material) -> dict[str, Pairs]:
    """Every source of images, by the name of its row."""
    return {
        "test": material.test,
        "train": material.train,
        "dataset": material.synthetic,
        **material.rows,
        **_seen(material),
    }


def _seen(material: Material) -> dict[str, SyntheticPairs]:
    """The rows of training slides, by their names in the report."""
    return {f"seen {row}": pairs for row, pairs in material.seen.items()}


@dataclass
class _Views:
    """Encodes turns of images, and tells the context how many of `total` are done."""

    name: str
    encoder: Encoder
    size: int
    context: Context
    total: int
    done: int = 0

    def __call__(
        self,
        pairs: Pairs,
        chosen: Sequence[int],
        turns: Sequence[int],
        change: Change = lambda x: x,
    ) -> Float32:
        """Encode images of `pairs`, each changed and turned, to (images, turns, dim)."""
        parts = []
        for start in range(0, len(chosen), ENCODE_BATCH):
            batch = chosen[start : start + ENCODE_BATCH]
            images = change(np.stack([centre(pairs.pair(n)[0], self.size) for n in batch]))
            views = [np.ascontiguousarray(np.rot90(images, turn, (1, 2))) for turn in turns]
            parts.append(np.stack([self.encoder.encode(view) for view in views], 1))
            self.done += len(batch) * len(turns)
            self.context.progress(self.done, self.total, self.name)
        return np.concatenate(parts)


def _features(
    request: EvaluateRequest, name: str, material: Material, context: Context
) -> dict[str, Any]:
    encoder = _encoder(request, name, material, context)
    sources = _sources(material)
    numbers = {row: spread(len(pairs), MOST_FEATURES) for row, pairs in sources.items()}
    # A distance takes no more images of a source than there are real ones, so no more are turned.
    turned = {row: spread(len(own), len(numbers["test"])) for row, own in numbers.items()}
    total = sum(map(len, numbers.values())) + (TURNS - 1) * sum(map(len, turned.values()))
    total += TURNS * len(numbers["test"])
    encode = _Views(name, encoder, material.dataset.size, context, total)

    def features(pairs: Pairs, chosen: list[int], values: Float32) -> Features:
        slides, regions = zip(*map(pairs.origins, chosen), strict=True)
        return Features(values, slides, regions)

    upright: dict[str, Float32] = {}
    encoded: dict[str, Features] = {}
    for row, pairs in sources.items():
        first = encode(pairs, numbers[row], [0])
        upright[row] = first[:, 0]
        chosen = [numbers[row][place] for place in turned[row]]
        others = encode(pairs, chosen, range(1, TURNS))
        encoded[row] = features(pairs, chosen, np.concatenate([first[turned[row]], others], 1))
    through = encode(material.test, numbers["test"], range(TURNS), _through(context, material))
    encoded["reconstruction"] = features(material.test, numbers["test"], through)
    test = encoded.pop("test")
    real = Moments(test.values.shape[2]).update(upright["test"])
    statistics = save_statistics(
        real, encoder=name, source=f"{material.real.name} ({', '.join(request.real_test)})",
        size=material.dataset.size, mpp=material.dataset.mpp,
    )  # fmt: skip
    context.store.put(report_key(request.report, f"reference-{name}.safetensors"), statistics)
    shown = spread(len(numbers["dataset"]), COLUMNS)
    neighbours = nearest(upright["dataset"][shown], upright["train"])
    return {
        **fidelity(test, encoded, request.seed),
        "encoder": name,
        "license": encoder.license,
        "reference": _against(request, name, upright["dataset"], material, context.store),
        "leakage": {
            row: authenticity(upright[row], upright["train"], upright["test"])
            for row in ("dataset", "both")
            if row in upright
        },
        "retrieval": _retrieval(request, material, encoder, context.store),
        "nearest": [
            {"sample": numbers["dataset"][row], "train": numbers["train"][near]}
            for row, near in zip(shown, neighbours, strict=True)
        ],
    }  # fmt: skip


def _through(context: Context, material: Material) -> Change:
    """What the autoencoder of the dataset's model makes of images."""
    model = material.model
    loaded = load_model(context.store, model.ref, context.device)
    return reconstruct(loaded.pipeline.vae, context.device)


def _against(
    request: EvaluateRequest,
    encoder: str,
    features: Float32,
    material: Material,
    store: ObjectStore,
) -> dict[str, Any] | None:
    """Hold features (n, dim) against statistics that were saved elsewhere, if any are given."""
    source = request.references.get(encoder)
    if source is None:
        return None
    path = Path(source) if Path(source).is_absolute() else store.local(source)
    try:
        reference = load_statistics(path.read_bytes())
        moments = Moments(features.shape[1]).update(features)
        dataset = material.dataset
        distance = reference.distance(moments, encoder=encoder, size=dataset.size, mpp=dataset.mpp)
    except (OSError, ValueError) as error:
        raise InputError(f"reference {source} can't be used: {error}") from error
    return {
        "source": reference.source,
        "n": [len(features), reference.moments.count],
        "frechet": distance,
    }


def _retrieval(
    request: EvaluateRequest, material: Material, encoder: Encoder | None, store: ObjectStore
) -> dict[str, Any]:
    """Find crops again in the images made from them, in those without, and in real regions."""
    return {
        name: retrieval(
            crop_pairs(store, material.rows[row], request.seed, name == "real"),
            encoder,
            request.seed,
        )
        for name, row in (("map", "map"), ("both", "both"), ("real", "both"))
        if row in material.rows
    }


def _appearance(request: EvaluateRequest, material: Material, context: Context) -> dict[str, Any]:
    store = context.store
    return {
        "stain": stain_errors(store, material.rows | _seen(material)),
        "copying": copying(store, material),
        "retrieval": _retrieval(request, material, None, store),
        "autoencoder": reconstruction_scores(material, _through(context, material)),
    }


def _segmenter(
    request: EvaluateRequest, material: Material, source: str, seed: int, context: Context
) -> dict[str, Any]:
    pairs: Pairs = material.train
    if source == "synthetic":
        pairs = material.synthetic
    elif request.few and source in ("few", "few_both"):
        pairs = few_of(material.train, request.few)
    besides = material.synthetic if source in ("both", "few_both") else None
    size, classes = material.dataset.size, material.dataset.classes
    steps = request.segmenter_steps
    model = make_segmenter(request.segmenter_encoder, classes, request.seed + seed)
    train_segmenter(
        model,
        pairs,
        first=classes.first,
        size=size,
        steps=steps,
        batch=request.segmenter_batch,
        seed=request.seed + seed,
        device=context.device,
        progress=lambda done: context.progress(done, steps, f"segmenter on {source}"),
        synthetic=besides,
    )

    def score(on: Pairs) -> dict[str, Any]:
        numbers = spread(len(on), MOST_SCORED)
        counts = confusion(
            model, on, numbers, classes=classes, size=size, batch=request.segmenter_batch,
            device=context.device,
            progress=lambda done: context.progress(done, len(numbers), "scoring"),
        )  # fmt: skip
        return {**iou_scores(counts, classes.first), "n": len(numbers)}

    result: dict[str, Any] = {"source": source, "seed": seed, "n": len(pairs) + len(besides or ())}
    result["test"] = score(material.test)
    if source == "real":
        result["faithfulness"] = score(material.rows.get("both", material.synthetic))
    return result


def _sheet(store: ObjectStore, material: Material, neighbours: list[dict[str, int]]) -> UInt8:
    """Draw requested map, crops, synthetic image and, where known, the nearest real one."""
    dataset = material.dataset
    index = material.synthetic.samples
    numbers = [item["sample"] for item in neighbours] or spread(len(index), COLUMNS)
    samples = [index[number] for number in numbers]
    crop_set = load_region_set(store, samples[0].provenance.crop_regions)
    crops = RegionIndex(store, crop_set, *dataset.request.crops.splits)
    rows = [
        [colorize(sample.labels, dataset.classes.colors) for sample in samples],
        [draw_crops(recut_crops(sample.provenance, crops), dataset.size) for sample in samples],
        [sample.image for sample in samples],
    ]
    names = ["requested map", "crops", "synthetic"]
    if neighbours:
        real = [material.train.pair(item["train"])[0] for item in neighbours]
        rows.append([centre(image, dataset.size) for image in real])
        names.append("nearest real")
    legend = list(zip(dataset.classes.names, dataset.classes.colors, strict=True))
    picture: UInt8 = sheet(rows, names, [s.provenance.key for s in samples], legend=legend)
    return picture
