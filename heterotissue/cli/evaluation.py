"""Commands that measure datasets and models: evaluate, study."""

from __future__ import annotations

from typing import Annotated

import typer

from heterotissue.cli.options import (
    BrokerOption,
    DryRunOption,
    FreshOption,
    GuidanceCropsOption,
    GuidanceMapOption,
    ModelOption,
    ReplaceOption,
    SeedOption,
    SetOption,
    StainingOption,
    StepsOption,
    StoreOption,
    changed,
    check_name,
    example,
)
from heterotissue.cli.outcome import run_and_end, run_series
from heterotissue.evaluation_cost import describe, segmenter_line
from heterotissue.progress import say, working
from heterotissue.running import Target
from heterotissue.study import IMAGENET_ENCODERS, default_encoder
from heterotissue.study import study as study_requests
from shared.contracts.evaluate import EvaluateRequest
from shared.contracts.synthesize import DatasetRequest
from shared.models import find_version, read_model

app = typer.Typer()


@app.command(epilog=example("htd evaluate --dataset dataset --report first"))
def evaluate(
    dataset: Annotated[
        str, typer.Option(help="Name of the dataset.", callback=check_name)
    ] = "dataset",
    name: Annotated[
        str, typer.Option("--report", help="Name of the report.", callback=check_name)
    ] = "report",
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            help="Encoder of the Fréchet distance; default: the cohort's 'embedded' one if it was "
            f"trained, else {IMAGENET_ENCODERS[0]} (repeatable)."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of segmenters of each kind.")] = 1,
    store: StoreOption = None,
    broker: BrokerOption = None,
    fresh: FreshOption = False,
    replace: ReplaceOption = False,
    dry_run: DryRunOption = False,
    change: SetOption = None,
) -> None:
    """Measure a dataset against held-out real regions."""
    target = Target.of(store, broker, dry_run)
    if encoder is None:
        encoder = [default_encoder(target.store, dataset)]
        say(f"encoder: {encoder[0]}")
    request = EvaluateRequest(report=name, dataset=dataset, encoders=tuple(encoder), seeds=seeds)
    request = changed(request, change)
    if not dry_run:
        with working("measuring"):
            line = segmenter_line(target.store, request, target.config, fresh=fresh)
        if line:
            say(line)
    run_and_end(target, request, fresh=fresh, replace=replace)


@app.command(epilog=example("htd study --model lung --encoder efficientnet-lite0 --seeds 3"))
def study(
    model: ModelOption,
    name: Annotated[
        str, typer.Option(help="Name of the study and of its report.", callback=check_name)
    ] = "study",
    images: Annotated[
        int, typer.Option(min=1, help="Number of synthetic images to train segmenters on.")
    ] = 1000,
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Encoder of the Fréchet distances; default: {', '.join(IMAGENET_ENCODERS)} "
            "(repeatable)."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of segmenters of each kind.")] = 3,
    segmenter_steps: Annotated[
        int, typer.Option(min=1, help="Training steps of a segmenter.")
    ] = 300,
    few: Annotated[
        float, typer.Option(help="Share of real regions that low-label segmenters are trained on.")
    ] = 0.1,
    steps: StepsOption = None,
    guidance_map: GuidanceMapOption = None,
    guidance_crops: GuidanceCropsOption = None,
    staining: StainingOption = None,
    guidance_map_only: Annotated[
        float | None,
        typer.Option(help="Map guidance scale of the row without crops; default: --guidance-map."),
    ] = None,
    embedding: Annotated[
        str | None,
        typer.Option(
            help="Model with `embedding` conditioning; adds the row map + embedding.",
            callback=check_name,
        ),
    ] = None,
    seed: SeedOption = 0,
    store: StoreOption = None,
    broker: BrokerOption = None,
    replace: ReplaceOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Measure a model in full: the effect of map and crops, usefulness, leakage."""
    target = Target.of(store, broker, dry_run)
    evaluate = EvaluateRequest(
        report=name,
        dataset=name,
        encoders=tuple(encoder or IMAGENET_ENCODERS),
        seeds=seeds,
        segmenter_encoder=IMAGENET_ENCODERS[0],
        segmenter_steps=segmenter_steps,
        few=few,
    )
    requests = study_requests(
        target.store,
        find_version(target.store, model),
        images=images,
        evaluate=evaluate,
        sampling={
            "steps": steps,
            "guidance_map": guidance_map,
            "guidance_crops": guidance_crops,
            "staining": staining,
            "seed": seed,
        },
        map_only={} if guidance_map_only is None else {"guidance_map": guidance_map_only},
        embedding=find_version(target.store, embedding) if embedding else None,
    )
    measured = read_model(target.store, find_version(target.store, model))
    tested = requests[0].images if isinstance(requests[0], DatasetRequest) else 0
    with working("measuring"):
        line = describe(evaluate, measured.size, measured.classes, tested, target.config)
    if line:
        say(line)
    run_series(target, requests, replace=replace)
