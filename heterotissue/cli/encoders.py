"""`htd encoders`: the registry of patch encoders, as a table."""

from __future__ import annotations

import typer
from rich.markup import escape
from rich.table import Table

from heterotissue.cli.options import example
from heterotissue.progress import print_table, say

app = typer.Typer()


@app.command(epilog=example("htd encoders"))
def encoders() -> None:
    """List the patch encoders with their feature size, input size, licence and source."""
    from shared.encoders import REGISTRY

    table = Table(box=None)
    for column in ("key", "dim", "input", "licence", "commercial use", "gated", "how to get it"):
        table.add_column(column, no_wrap=True)
    for key, known in REGISTRY.items():
        table.add_row(
            key if known.loads else f"[dim]{key} (import only)[/]",
            str(known.dim),
            f"{known.size} px",
            known.license,
            known.commercial,
            "yes" if known.gated else "no",
            escape(known.source),
        )
    print_table(table)
    say("also: 'embedded' (htd embed trains it on the cohort), any timm model, hf-hub:owner/name")
