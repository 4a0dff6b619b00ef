"""The evaluate stage: shards for encoders, for appearance and for segmenters; then the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from services.evaluate.appearance import measure_appearance
from services.evaluate.contact_sheet import draw_sheet
from services.evaluate.data import class_gaps, gather
from services.evaluate.encoding import EncoderResult, measure_encoder, open_encoder
from services.evaluate.held_out import changed, unlearnt
from services.evaluate.naming import report_names, with_pseudonyms
from services.evaluate.report import html_report, summarize
from services.evaluate.segmentation import check_segmenter
from services.evaluate.usefulness import (
    SegmenterResult,
    measure_segmenter,
    segmenter_side,
    training_sets,
)
from shared.contracts.evaluate import (
    Appearance,
    EvaluateRequest,
    ReportPart,
    TrainingSet,
    report_key,
)
from shared.datasets.pseudonyms import dataset_pseudonyms
from shared.errors import JobError
from shared.imaging.sheet import sheet_png
from shared.jobs import Context, Plan, Shard, Stage

FEATURES = "features"
APPEARANCE = "appearance"
SEGMENTER = "segmenter"


class EvaluateStage(Stage[EvaluateRequest]):
    """Evaluates a synthetic dataset against real regions, and writes a report."""

    name: ClassVar[str] = "evaluate"
    request = EvaluateRequest

    def plan(self, request: EvaluateRequest, context: Context) -> Plan:
        material = gather(context.store, request)
        check_segmenter(
            request.segmenter_encoder, material.dataset.classes, segmenter_side(material)
        )
        for name in request.encoders:  # a missing or gated encoder fails the job before any shard
            open_encoder(request, name, material, context)
        features = [
            Shard(id=f"{FEATURES}-{number}", args={"encoder": name})
            for number, name in enumerate(request.encoders)
        ]
        segmenters = [
            Shard(id=f"{SEGMENTER}-{source}-{seed}", args={"source": source, "seed": seed})
            for seed in range(request.seeds)
            for source in training_sets(request)
        ]
        return Plan(phases=((*features, Shard(id=APPEARANCE), *segmenters),))

    def run(self, request: EvaluateRequest, shard: Shard, context: Context) -> dict[str, Any]:
        material = gather(context.store, request)
        result: ReportPart
        if shard.id == APPEARANCE:
            result = measure_appearance(request, material, context)
        elif "encoder" in shard.args:
            result = measure_encoder(request, str(shard.args["encoder"]), material, context)
        else:
            source, seed = TrainingSet(str(shard.args["source"])), int(str(shard.args["seed"]))
            result = measure_segmenter(request, material, source, seed, context)
        return result.model_dump(mode="json")

    def finish(
        self, request: EvaluateRequest, done: Mapping[str, dict[str, Any]], context: Context
    ) -> dict[str, Any]:
        if not done:
            raise JobError(f"report {request.report!r}: nothing could be measured")
        store = context.store
        material = gather(store, request)
        encoders = [
            EncoderResult.model_validate(done[shard])
            for shard in sorted(done)
            if shard.startswith(FEATURES)
        ]
        segmenters = [
            SegmenterResult.model_validate(result)
            for shard, result in done.items()
            if shard.startswith(SEGMENTER)
        ]
        appearance = Appearance.model_validate(done[APPEARANCE]) if APPEARANCE in done else None
        gaps = [*changed(store, request), *unlearnt(store, request)]
        gaps += class_gaps(store, request, material.real)
        report = summarize(request, material, encoders, appearance, segmenters, gaps)
        pseudonyms = dataset_pseudonyms(store, material.dataset.request)
        report = with_pseudonyms(report, report_names(store, material.real, pseudonyms))
        neighbours = encoders[0].nearest if encoders else ()
        pairs = [(neighbour.sample, neighbour.train) for neighbour in neighbours]
        dataset = material.dataset
        drawn = draw_sheet(store, material, pairs)
        picture = sheet_png(drawn, dataset.model, dataset.dataset)
        store.put(report_key(request.report, "sheet.png"), picture)
        page = html_report(report, material, picture)
        store.put(report_key(request.report, "report.html"), page.encode())
        store.put_json(report_key(request.report, "report.json"), report)
        return {
            "report": request.report,
            "held_out": report.held_out,
            "over_floor": {
                part.encoder: part.rows["dataset"].over_floor
                for part in report.fidelity
                if part.rows
            },
            "mean_iou": {
                source.value: scores.mean_iou if scores else None
                for source, scores in report.segmentation.items()
            },
            "classes never learnt": list(material.model.unlearnt),
        }
