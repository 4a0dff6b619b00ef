"""Commands about this machine: doctor, gateway."""

from __future__ import annotations

import typer
from rich.table import Table

from heterotissue.cli.options import example
from heterotissue.progress import print_table
from shared.logging import configure_logging
from shared.settings import settings

app = typer.Typer()


@app.command(epilog=example("htd doctor"))
def doctor() -> None:
    """Check this machine's hardware and installation, and say how to get missing parts."""
    from heterotissue.doctor import examine

    findings = examine()
    table = Table(box=None, show_header=False)
    for finding in findings:
        mark = "[green]ok[/]" if finding.good else "[yellow]![/]"
        table.add_row(mark, finding.name, finding.detail)
    print_table(table)
    if not all(finding.good for finding in findings):
        raise typer.Exit(1)


@app.command(epilog=example("htd gateway"))
def gateway() -> None:
    """Serve the HTTP API at HTD_GATEWAY_HOST and HTD_GATEWAY_PORT; Ctrl-C stops it."""
    from services.gateway.server import serve

    configure_logging(settings().log_level, settings().log_format)
    serve(settings())
