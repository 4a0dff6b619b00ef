"""Commands on the named things of a store: list, rm."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from heterotissue.cli.jobs import jobs_list
from heterotissue.cli.options import StoreOption, example
from heterotissue.progress import print_table, say
from heterotissue.running import Target
from shared.contracts.explaining import did_you_mean
from shared.errors import InputError, quoted

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
    FIELDS = "fields"
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

    table = Table("name", "made (UTC)", "state", "job", "about", box=None, pad_edge=False)
    for entry in entries(Target.of(store, "").store, kind.value):
        made = f"{entry.made:%Y-%m-%d %H:%M}" if entry.made else "-"
        table.add_row(entry.name, made, entry.state, entry.job or "-", escape(entry.about))
    print_table(table)


@app.command("rm", epilog=example("htd rm datasets dataset"))
def remove_name(
    kind: Annotated[
        str, typer.Argument(help=f"What to remove: {', '.join(Kind)}; or <kind>/<name>.")
    ],
    name: Annotated[str | None, typer.Argument(help="Its name, as in 'htd list'.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    store: StoreOption = None,
) -> None:
    """Remove a named thing with the records of its job, and free its name."""
    from heterotissue.names import full_name, remove

    if name is None:  # the two words as one, as a key in the store begins
        kind, _, name = kind.strip("/").partition("/")
    if kind not in list(Kind):
        raise InputError(
            f"there is no kind {quoted(kind)} to remove{did_you_mean(kind, list(Kind))}"
        )
    if not name:
        raise InputError(f"name one of the {kind}: 'htd list {kind}' shows them")
    if kind == Kind.JOBS:
        raise InputError("a job goes with its result; 'htd jobs cancel' stops one")
    opened = Target.of(store, "").store
    name = full_name(opened, kind, name)
    if not yes and not (sys.stdin and sys.stdin.isatty()):
        raise InputError(f"there is no terminal to ask at: --yes removes {name} of the {kind}")
    if not yes:
        typer.confirm(f"Remove {name} of the {kind}?", abort=True)
    say(f"removed {name}: {remove(opened, kind, name)} objects")
