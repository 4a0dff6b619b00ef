"""The `htd` command: its commands in the order of the pipeline, and its exit codes."""

from __future__ import annotations

import errno
import logging
import sys
import warnings
from importlib.metadata import version
from typing import Annotated

import typer
from rich.markup import escape

from heterotissue.cli import (
    GO_ON,
    INTERRUPTED,
    datasets,
    edits,
    encoders,
    evaluation,
    fields,
    jobs,
    labels,
    machine,
    models,
    names,
    pipelines,
    slides,
    stack,
    work,
)
from heterotissue.cli.options import Group
from heterotissue.progress import console
from shared.errors import HeteroTissueError, InputError, printable
from shared.logging import configure_logging

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for subject in (
    slides, labels, encoders, models, datasets, fields, edits, evaluation, names, pipelines,
    machine, work,
):  # fmt: skip
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
    if not sys.warnoptions:  # they are for programmers, who ask for them by -W
        warnings.simplefilter("ignore")
    configure_logging("WARNING")
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # its retries; the error says the rest
    try:
        app(standalone_mode=True)
    except InputError as error:
        _fail(str(error), 2)
    except HeteroTissueError as error:
        _fail(str(error), 1)
    except OSError as error:
        _fail(_os_error(error), 1)
    except MemoryError:
        _fail("the memory is full: ask for less at a time, or use a machine with more", 1)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer turns the interrupt into this exit
            console.print(GO_ON)
        raise
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in CLIENTS:
            raise  # a fault of the program
        _fail(f"a server does not answer: {error}", 1)


CLIENTS = frozenset({"minio", "redis", "urllib3"})
"""Clients of servers; they are slow to import, so their errors are known by the package's name."""


REMEDIES = {
    errno.ENOSPC: "free some space there, then run the same command again",
    errno.EDQUOT: "free some of your quota, then run the same command again",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that you may read and write",
    errno.ENOENT: "check the path, and make the folder first",
    errno.ENOTDIR: "a part of this path is a file",
    errno.EEXIST: "a file is in the way; choose another folder",
}


def _os_error(error: OSError) -> str:
    """Say what the system refused, for which file, and what to do."""
    if error.strerror is None:
        return str(error) or type(error).__name__
    places = [str(name) for name in (error.filename, error.filename2) if name is not None]
    remedy = REMEDIES.get(error.errno or 0)
    text = f"{' -> '.join(places)}: {error.strerror}" if places else error.strerror
    return f"{text}; {remedy}" if remedy else text


def _fail(message: str, code: int) -> None:
    text = escape(printable(message, keep="\n\t"))
    console.print("[red]error:[/]", text, highlight=False, soft_wrap=True)
    sys.exit(code)
