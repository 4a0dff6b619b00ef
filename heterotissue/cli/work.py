"""`htd work`: work on the jobs of a store without a queue."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from heterotissue.cli.options import StoreOption, example
from heterotissue.progress import say
from heterotissue.running import Target
from heterotissue.stages import load_stage
from shared.computing import prepare
from shared.errors import HandedBackError, InputError
from shared.jobs import Ledger, stage_of, work
from shared.logging import configure_logging
from shared.settings import settings
from shared.tracing import configure_tracing

app = typer.Typer()


@app.command("work", epilog=example("htd work --stage embed --until-idle"))
def work_command(
    stage: Annotated[str, typer.Option("--stage", help="Stage whose jobs it works on.")],
    store: StoreOption = None,
    job: Annotated[str | None, typer.Option("--job", help="Work on this job alone.")] = None,
    unit: Annotated[
        str | None, typer.Option("--unit", help="Run this unit of --job alone, and end.")
    ] = None,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="End when no job is open; else wait for more.")
    ] = False,
) -> None:
    """Work on the open jobs of a store, beside any number of such processes, without Redis.

    For clusters such as Slurm, where the store is a shared folder or a bucket. The jobs come from
    commands with --broker store. A process that is told to end gives its unit back.
    """
    if unit is not None and job is None:
        raise InputError("--unit needs --job: 'htd jobs list' names the jobs")
    config = settings()
    opened = load_stage(stage)
    ledger = Ledger(Target.of(store, "").store)
    if job is not None:
        ledger.stage(job)  # raises if there is no such job
        if stage_of(job) != stage:
            raise InputError(f"{job} is no job of {stage}: give --stage {stage_of(job)}")
    configure_logging(config.log_level, config.log_format)
    configure_tracing(config.otlp_endpoint, stage)
    signal.signal(signal.SIGTERM, _hand_back)
    prepare(config.threads)
    ran = work(ledger, opened, config, job=job, unit=unit, until_idle=until_idle)
    say(f"{stage}: {ran} units run")


def _hand_back(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise HandedBackError
