"""The options that several commands share, and the parsing of their values."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar, get_args

import typer
import yaml
from pydantic import TypeAdapter

from shared.contracts.base import Request
from shared.contracts.synthesize import ExportFormat, FolderFormat
from shared.errors import InputError

R = TypeVar("R", bound=Request)

EXPORT_FORMATS = ", ".join(get_args(ExportFormat))
FOLDER_FORMATS = ", ".join(get_args(FolderFormat))

StoreOption = Annotated[
    str | None, typer.Option("--store", help="A directory or s3://bucket/prefix [HTD_STORE].")
]
BrokerOption = Annotated[
    str | None,
    typer.Option("--broker", help="redis:// URL: run on the workers [HTD_BROKER_URL]."),
]
ServerOption = Annotated[
    str | None,
    typer.Option("--server", help="Address of a gateway: run there, with the token in HTD_TOKEN."),
]
ModelOption = Annotated[str, typer.Option("--model", help="<name> or <name>/<version>.")]
CohortOption = Annotated[str, typer.Option("--cohort", help="Name of the cohort.")]
RegionSizeOption = Annotated[int, typer.Option("--region-size", help="Side of a region in pixels.")]
StepsOption = Annotated[
    int | None, typer.Option("--steps", min=1, help="Denoising steps; default: the model's.")
]
GuidanceMapOption = Annotated[
    float | None,
    typer.Option("--guidance-map", help="Guidance scale of the map; default: the model's."),
]
GuidanceCropsOption = Annotated[
    float | None,
    typer.Option("--guidance-crops", help="Guidance scale of the crops; default: the model's."),
]
StainingOption = Annotated[
    float | None,
    typer.Option(
        "--staining", help="Strength of matching tissue to the staining of its crops, 0 to 1."
    ),
]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Run the request again, even if it is done.")
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Print the plan, counts and cost where known; write and run nothing."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Change a field of the request, e.g. --set regions.low=0.1 (repeatable)."
    ),
]


def example(text: str) -> str:
    """Format an example for the help text of a command."""
    return f"[dim]Example:[/] {text}"


def parse_names(text: str) -> list[str]:
    """Split a comma-separated list of names."""
    return [name.strip() for name in text.split(",") if name.strip()]


def export_formats(names: list[str]) -> tuple[ExportFormat, ...]:
    """Check the names of export formats. Raises `ValidationError` if one is unknown."""
    return TypeAdapter(tuple[ExportFormat, ...]).validate_python(tuple(names))


def folder_formats(names: list[str]) -> tuple[FolderFormat, ...]:
    """Check the names of formats of `htd export`. Raises `InputError` if one is unknown."""
    known = get_args(FolderFormat)
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"--format {', '.join(unknown)}: formats are {', '.join(known)}")
    return TypeAdapter(tuple[FolderFormat, ...]).validate_python(tuple(names))


def parse_proportions(items: list[str]) -> dict[str, float]:
    """Parse <class>=<share> pairs. Raises `InputError` for anything else."""
    shares = {}
    for item in items:
        name, _, share = item.rpartition("=")
        try:
            shares[name] = float(share)
        except ValueError as error:
            raise InputError(
                f"--proportion {item!r} must be <class>=<share>, such as tumor=0.4"
            ) from error
    return shares


def changed(request: R, changes: list[str] | None) -> R:
    """Return a copy of a request with some fields changed by `--set`.

    Args:
        request: the request.
        changes: items `<field>=<value>`; the field is a dotted name, the value is YAML.

    Raises:
        InputError: the request has no such field.
        ValidationError: a value is not valid for its field.
    """
    plain: dict[str, Any] = request.model_dump(mode="json")
    for item in changes or []:
        path, sign, value = item.partition("=")
        part: Any = plain
        *parents, last = path.split(".")
        for name in parents:
            part = part.get(name) if isinstance(part, dict) else None
        if not sign or not isinstance(part, dict) or last not in part:
            raise InputError(f"--set {item}: {request.stage} has no field {path!r}")
        part[last] = yaml.safe_load(value)
    return type(request).model_validate(plain)
