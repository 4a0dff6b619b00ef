"""The evaluate stage: features and segmenters side by side, then one report."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from services.evaluate.data import (
    JoinedPairs,
    Material,
    Pairs,
    centre,
    gather,
    spread,
)
from services.evaluate.fidelity import fidelity, nearest
from services.evaluate.report import html_report, summarize
from services.evaluate.segmentation import (
    check_encoder,
    confusion,
    iou_scores,
    make_segmenter,
    train_segmenter,
)
from shared.contracts.evaluate import EvaluateRequest, report_key
from shared.datasets import draw_crops, recut_crops
from shared.encoders import Encoder, load_encoder
from shared.errors import InputError, JobError
from shared.imaging.regions import RegionIndex, encode_png, load_region_set
from shared.imaging.sheet import colorize, sheet
from shared.jobs import Context, Plan, Shard, Stage
from shared.storage import ObjectStore

FEATURES = "features"
TRAINING_SETS = ("real", "synthetic", "both")
COLUMNS = 8
MOST_FEATURES = 10_000  # images per side of a Fréchet distance
MOST_SCORED = 2_000  # images that a segmenter is scored on
ENCODE_BATCH = 64
OUTPUT_STRIDE = 16  # of DeepLabV3+

UInt8 = NDArray[np.uint8]


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
        _encoder(request, material, context)  # a missing or gated one is told of at once
        segmenters = [
            Shard(id=f"segmenter-{source}-{seed}", args={"source": source, "seed": seed})
            for seed in range(request.seeds)
            for source in TRAINING_SETS
        ]
        return Plan(phases=((Shard(id=FEATURES), *segmenters),))

    def run(self, request: EvaluateRequest, shard: Shard, context: Context) -> dict[str, Any]:
        torch.set_num_threads(context.threads)
        material = gather(context.store, request)
        if shard.id == FEATURES:
            return _features(request, material, context)
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
        features = done.get(FEATURES)
        segmenters = [part for name, part in done.items() if name != FEATURES]
        report = summarize(request, material, features, segmenters)
        neighbours = features["nearest"] if features else []
        picture = encode_png(_sheet(store, material, neighbours))
        store.put(report_key(request.report, "sheet.png"), picture)
        page = html_report(report, material, picture)
        store.put(report_key(request.report, "report.html"), page.encode())
        store.put_json(report_key(request.report, "report.json"), report)
        return {
            "report": request.report,
            "held_out": report["held_out"],
            "frechet": features["frechet"] if features else None,
            "segmentation": report["segmentation"],
            "faithfulness": report["faithfulness"],
        }


def _encoder(request: EvaluateRequest, material: Material, context: Context) -> Encoder:
    return load_encoder(
        request.encoder,
        context.store,
        weights=request.encoder_weights,
        device=context.device,
        cohort=material.real.cohort,
    )


def _features(request: EvaluateRequest, material: Material, context: Context) -> dict[str, Any]:
    encoder = _encoder(request, material, context)
    sources: list[Pairs] = [material.synthetic, material.test, material.train]
    numbers = [spread(len(source), MOST_FEATURES) for source in sources]
    total = sum(map(len, numbers))
    encoded: list[NDArray[np.float32]] = []
    seen = 0
    for source, chosen in zip(sources, numbers, strict=True):
        parts = []
        for start in range(0, len(chosen), ENCODE_BATCH):
            pairs = [source.pair(number) for number in chosen[start : start + ENCODE_BATCH]]
            images = np.stack([centre(image, material.dataset.size) for image, _ in pairs])
            parts.append(encoder.encode(images))
            seen += len(pairs)
            context.progress(seen, total, "features")
        encoded.append(np.concatenate(parts))
    synthetic, test, train = encoded
    shown = spread(len(numbers[0]), COLUMNS)
    neighbours = nearest(synthetic[shown], train)
    return {
        **fidelity(synthetic, test, train, request.seed),
        "encoder": request.encoder,
        "license": encoder.license,
        "nearest": [
            {"sample": numbers[0][row], "train": numbers[2][near]}
            for row, near in zip(shown, neighbours, strict=True)
        ],
    }


def _segmenter(
    request: EvaluateRequest, material: Material, source: str, seed: int, context: Context
) -> dict[str, Any]:
    pairs: dict[str, Pairs] = {
        "real": material.train,
        "synthetic": material.synthetic,
        "both": JoinedPairs(material.train, material.synthetic),
    }
    size, classes = material.dataset.size, material.dataset.classes
    steps = request.segmenter_steps
    model = make_segmenter(request.segmenter_encoder, classes, request.seed + seed)
    train_segmenter(
        model,
        pairs[source],
        first=classes.first,
        size=size,
        steps=steps,
        batch=request.segmenter_batch,
        seed=request.seed + seed,
        device=context.device,
        progress=lambda done: context.progress(done, steps, f"segmenter on {source}"),
    )

    def score(on: Pairs) -> dict[str, Any]:
        numbers = spread(len(on), MOST_SCORED)
        counts = confusion(
            model, on, numbers, classes=classes, size=size, batch=request.segmenter_batch,
            device=context.device,
            progress=lambda done: context.progress(done, len(numbers), "scoring"),
        )  # fmt: skip
        return {**iou_scores(counts, classes.first), "n": len(numbers)}

    result: dict[str, Any] = {"source": source, "seed": seed, "n": len(pairs[source])}
    result["test"] = score(material.test)
    if source == "real":
        result["faithfulness"] = score(material.synthetic)
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
