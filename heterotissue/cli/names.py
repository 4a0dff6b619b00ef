"""Commands on the named things of a store: list, rm."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table

from heterotissue.cli.jobs import jobs_list
from heterotissue.cli.options import StoreOption, example
from heterotissue.progress import console
from heterotissue.running import Target

app = typer.Typer()


class Kind(StrEnum):
    """The kinds that the commands take; see `heterotissue.names.KINDS`."""

    SLIDES = "slides"
    COHORTS = "cohorts"
    REGIONS = "regions"
    FEATURES = "features"
    CLUSTERINGS = "clusterings"
    MODELS = "models"
    DATASETS = "datasets"
    REPORTS = "reports"
    JOBS = "jobs"


@app.command("list", epilog=example("htd list models"))
def list_names(
    kind: Annotated[Kind, typer.Argument(help="What to list.")], store: StoreOption = None
) -> None:
    """List what a store holds: names, times, states."""
    if kind is Kind.JOBS:
        jobs_list(store)
        return
    from heterotissue.names import entries

    table = Table("name", "made (UTC)", "state", "job", "about", box=None)
    for entry in entries(Target.of(store, "").store, kind.value):
        made = f"{entry.made:%Y-%m-%d %H:%M}" if entry.made else "-"
        table.add_row(entry.name, made, entry.state, entry.job or "-", entry.about)
    console.print(table)


@app.command("rm", epilog=example("htd rm datasets dataset"))
def remove_name(
    kind: Annotated[Kind, typer.Argument(help="Kind of the thing to remove.")],
    name: Annotated[str, typer.Argument(help="Its name, as in 'htd list'.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    store: StoreOption = None,
) -> None:
    """Remove a named thing with the records of its job, and free its name."""
    from heterotissue.names import remove

    if kind is Kind.JOBS:
        raise typer.BadParameter("a job goes with its result; 'htd jobs cancel' stops one")
    if not yes:
        typer.confirm(f"Remove {name} of the {kind.value}?", abort=True)
    gone = remove(Target.of(store, "").store, kind.value, name)
    console.print(f"removed {name}: {gone} objects")
