"""Commands that run the whole pipeline: pipeline, demo."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from heterotissue.cli.options import (
    BrokerOption,
    DryRunOption,
    ReplaceOption,
    StoreOption,
    check_mpp,
    example,
    parse_classes,
)
from heterotissue.cli.outcome import run_series
from heterotissue.pipelines import load_pipeline
from heterotissue.progress import console, print_table, say, working
from heterotissue.recipes import load_recipe
from heterotissue.running import Target, run_or_fail
from shared.computing import prepare
from shared.contracts.base import Request

app = typer.Typer()


@app.command(epilog=example("htd pipeline study.yaml --store s3://bucket"))
def pipeline(
    file: Annotated[Path, typer.Argument(help="YAML file with a list `requests`.")],
    store: StoreOption = None,
    broker: BrokerOption = None,
    replace: ReplaceOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Run the requests of a file in order; all are checked before the first one starts."""
    run_series(Target.of(store, broker, dry_run), load_pipeline(file), replace=replace)


@app.command(epilog=example("htd demo --out out/demo --slides my-slides/ --mpp 0.5"))
def demo(
    out: Annotated[Path, typer.Option(help="Folder that receives the results.")] = Path("out/demo"),
    slides: Annotated[
        Path | None, typer.Option(help="Folder with your slides; default: phantoms are made.")
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Class names of your annotations in the order of their indices, from 1."),
    ] = None,
    mpp: Annotated[
        float | None,
        typer.Option(help="µm per pixel; it overrides what the slides state.", callback=check_mpp),
    ] = None,
) -> None:
    """Run the whole pipeline in minutes: slides → tissue types → model → dataset → report.

    The first picture shows what the shipped model makes of painted maps; then all is made from
    your slides, or from phantoms. Open index.html at the end.
    """
    from heterotissue.demo import FIRST_PICTURE, collect, demo_slides, run_demo, summary

    started = time.time()
    target = Target.of(str(out / "store"), "")
    prepare(target.config.threads)  # before torch is imported
    from heterotissue.first_picture import draw_first_picture

    with working("painting"):
        draw_first_picture(target.store, out / FIRST_PICTURE)
    say(f"first picture, by the shipped model: {out / FIRST_PICTURE}")
    names = parse_classes(classes).names[1:] if classes else None
    sources = demo_slides(target.store, out, slides, names, mpp)
    timings: dict[str, float] = {}

    def run(request: Request) -> None:
        began = time.time()
        run_or_fail(target, request)
        timings[request.stage] = time.time() - began

    run_demo(sources, load_recipe("tiny"), run)
    collect(target.store, sources, out)
    print_table(summary(out, timings, time.time() - started), console)
