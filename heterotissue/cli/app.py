"""The `htd` command: its commands in the order of the pipeline, and its exit codes."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer
from pydantic import ValidationError

from heterotissue.cli import (
    GO_ON,
    INTERRUPTED,
    datasets,
    encoders,
    evaluation,
    jobs,
    machine,
    models,
    pipelines,
    slides,
    stack,
)
from heterotissue.progress import console
from shared.contracts.base import explain
from shared.errors import HeteroTissueError, InputError
from shared.logging import configure_logging

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for subject in (slides, encoders, models, datasets, evaluation, pipelines, machine):
    app.add_typer(subject.app)
app.add_typer(jobs.app, name="jobs", no_args_is_help=True)
app.add_typer(stack.app, name="stack", no_args_is_help=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"heterotissue {version('heterotissue')}")
        raise typer.Exit


@app.callback()
def root(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Make heterogeneous histopathology images with their annotations from your slides."""


def main() -> None:
    """Run the command line.

    Expected errors are printed as one line, without a traceback. The exit code is 2 for wrong
    input, 1 for any other error, 3 for a job that ended partial, and 130 after Ctrl-C.
    """
    configure_logging("WARNING")
    try:
        app(standalone_mode=True)
    except ValidationError as error:
        _fail(explain(error), 2)
    except InputError as error:
        _fail(str(error), 2)
    except HeteroTissueError as error:
        _fail(str(error), 1)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer turns the interrupt into this exit
            console.print(GO_ON)
        raise


def _fail(message: str, code: int) -> None:
    console.print(f"[red]error:[/] {message}", highlight=False)
    sys.exit(code)
