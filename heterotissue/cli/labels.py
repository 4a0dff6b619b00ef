"""The command from a label map to an annotation: labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heterotissue.cli.options import CohortOption, StoreOption, check_name, example
from heterotissue.progress import say
from heterotissue.running import Target
from shared.contracts.annotations import FORMATS
from shared.errors import InputError, shortened

app = typer.Typer()

WRITTEN = {kind.name: kind for kind in FORMATS if kind.written}


@app.command(epilog=example("htd labels s1 --cohort lung --format qupath --out s1.geojson"))
def labels(
    slide: Annotated[str, typer.Argument(help="Name of the slide.", callback=check_name)],
    cohort: CohortOption = "cohort",
    kind: Annotated[
        str, typer.Option("--format", help=f"Format: {', '.join(WRITTEN)}.")
    ] = "qupath",
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: the slide's name here.")
    ] = None,
    bounds: Annotated[
        bool,
        typer.Option("--bounds", help="Count from the corner of the scanned area, as QuPath does."),
    ] = False,
    store: StoreOption = None,
) -> None:
    """Write a slide's label map as an annotation that other programmes open."""
    from heterotissue.labels import write_labels

    row = next((row for row in WRITTEN.values() if row.name == kind), None)
    if row is None:
        raise InputError(f"--format {shortened(kind)}: choose {', '.join(WRITTEN)}")
    path = out or Path(slide + ("_mask" if row.name == "mask" else "") + row.suffixes[0])
    target = Target.of(store, None)
    write_labels(target.store, slide, cohort, row.name, path, "bounds" if bounds else "slide")
    say(f"labels: {path}")
