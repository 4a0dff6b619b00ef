"""`htd stack`: start the local stack, and show which of its processes run."""

from __future__ import annotations

import functools
import signal
import time
from pathlib import Path
from typing import Annotated

import typer

from heterotissue.cli.options import example, parse_names
from heterotissue.progress import console
from shared.contracts.requests import REQUESTS

FOLDER = Path("out/stack")
ALL_SERVICES = ",".join(REQUESTS)

app = typer.Typer(help="Redis, S3, workers and the gateway on this machine, without Docker.")


@app.command(epilog=example("htd stack up --services ingest,embed"))
def up(
    folder: Annotated[Path, typer.Option(help="Folder of the data, logs and keys.")] = FOLDER,
    services: Annotated[
        str,
        typer.Option(help="Services that get a worker; a service named twice gets two workers."),
    ] = ALL_SERVICES,
    triton: Annotated[
        bool, typer.Option(help="Start a Triton server too; 'htd deploy' loads a model on it.")
    ] = False,
) -> None:
    """Start the local stack; Ctrl-C stops it."""
    from heterotissue.stack.supervisor import Stack

    say = functools.partial(console.print, highlight=False)
    stack = Stack(folder, parse_names(services), say, triton=triton, gateway=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM stops it like Ctrl-C
    with stack:
        console.print(f"ready       source {stack.folder / 'env'}", highlight=False)
        try:
            while True:
                stack.revive()
                time.sleep(1)
        except KeyboardInterrupt:
            console.print("stopping; running shards are finished or handed back")


@app.command(epilog=example("htd stack status"))
def status(folder: Annotated[Path, typer.Option(help="Folder of the stack.")] = FOLDER) -> None:
    """Show which processes of the stack run."""
    from heterotissue.stack.supervisor import stack_status

    states = stack_status(folder)
    for name, running in states.items():
        console.print(f"{name:<12}{'[green]runs[/]' if running else '[red]has ended[/]'}")
    if not states or not all(states.values()):
        if not states:
            console.print(f"no stack is up in {folder}")
        raise typer.Exit(1)
