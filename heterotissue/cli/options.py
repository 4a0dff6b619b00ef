"""The options that several commands share, and the parsing of their values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer
from pydantic import BaseModel, TypeAdapter, ValidationError
from typer.core import TyperGroup

from shared.contracts.base import Classes, Name, Request, class_zero, spelling
from shared.contracts.explaining import (
    Place,
    did_you_mean,
    dotted,
    explain,
    fields_at,
    models_of,
)
from shared.contracts.ingest import GIVEN_MPP
from shared.contracts.synthesize import ExportFormat, FolderFormat
from shared.errors import InputError, all_quoted, quoted, shortened
from shared.settings import Settings
from shared.yaml_files import parse_yaml

R = TypeVar("R", bound=Request)

EXPORT_FORMATS = ", ".join(get_args(ExportFormat))
FOLDER_FORMATS = ", ".join(get_args(FolderFormat))


def check_positive(param: typer.CallbackParam, value: float | None) -> float | None:
    """Check a number above 0, such as µm per pixel; the callback of options that take one.

    Raises:
        InputError: it is not above 0, or not finite.
    """
    if value is not None and not 0 < value < math.inf:
        raise InputError(f"{param.opts[0]} {value:g}: must be above 0")
    return value


def check_mpp(param: typer.CallbackParam, value: float | None) -> float | None:
    """Check µm per pixel of slides or tiles; the callback of options that take it.

    Raises:
        InputError: it is no number that a microscope gives: it may be in mm or nm.
    """
    least, most = GIVEN_MPP
    if value is not None and not least <= value <= most:
        raise InputError(
            f"{param.opts[0]} {value:g}: must be µm per pixel, from {least:g} to {most:g}"
        )
    return value


def check_name(param: typer.CallbackParam, value: str | None) -> str | None:
    """Check a name, or models' <name>/<version>; the callback of options that take one.

    Raises:
        InputError: it cannot be a name in the store; the message has the option's own name.
    """
    parts = (value or "").split("/", 1) if param.name in {"model", "embedding"} else [value]
    try:
        for part in parts if value is not None else ():
            TypeAdapter(Name).validate_python(part)
    except ValidationError as error:
        raise InputError(f"{param.opts[0]}: {explain(error, name=lambda _: '')}") from error
    return value


StoreOption = Annotated[
    str | None, typer.Option("--store", help="A directory or s3://bucket/prefix [HTD_STORE].")
]
BrokerOption = Annotated[
    str | None,
    typer.Option(
        "--broker", help="redis:// URL: run on the workers; store: by 'htd work' [HTD_BROKER_URL]."
    ),
]
ServerOption = Annotated[
    str | None,
    typer.Option("--server", help="Address of a gateway: run there, with the token in HTD_TOKEN."),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help="<name>, which is its newest version, or <name>/<version>.",
        callback=check_name,
    ),
]
CohortOption = Annotated[
    str, typer.Option("--cohort", help="Name of the cohort.", callback=check_name)
]
RegionSizeOption = Annotated[
    int, typer.Option("--region-size", min=32, max=4096, help="Side of a region in pixels.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of random choices.")]
RenameOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rename",
        help="<name, value or colour>=<class>: of annotations, masks or folders of tiles, e.g. "
        "_0=tumor, 2=tumor, #ff8000=tumor (repeatable).",
    ),
]
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
ReplaceOption = Annotated[
    bool,
    typer.Option("--replace", help="Replace a result of another request that has this name."),
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
    """Check the names of export formats. Raises `InputError` if one is unknown."""
    known = get_args(ExportFormat)
    if unknown := [name for name in names if name not in known]:
        raise InputError(
            f"--export {shortened(', '.join(unknown))}: formats are {', '.join(known)}; "
            "'htd export' writes others"
        )
    return TypeAdapter(tuple[ExportFormat, ...]).validate_python(tuple(names))


def folder_formats(names: list[str]) -> tuple[FolderFormat, ...]:
    """Check the names of formats of `htd export`. Raises `InputError` if one is unknown."""
    known = get_args(FolderFormat)
    if unknown := [name for name in names if name not in known]:
        raise InputError(
            f"--format {shortened(', '.join(unknown))}: formats are {', '.join(known)}"
        )
    return TypeAdapter(tuple[FolderFormat, ...]).validate_python(tuple(names))


def parse_proportions(items: list[str]) -> dict[str, float]:
    """Parse <class>=<share> pairs. Raises `InputError` for anything else."""
    shares: dict[str, float] = {}
    for item in items:
        name, _, share = item.rpartition("=")
        if name in shares:
            raise InputError(
                f"--proportion {shortened(item)}: the share of {quoted(name)} is given twice"
            )
        try:
            shares[name] = float(share)
        except ValueError as error:
            raise InputError(
                f"--proportion {quoted(item)} must be <class>=<share>, such as tumor=0.4"
            ) from error
    return shares


BACKGROUNDS = {"background", "bg", "other", "others", "none", "void", "unlabelled", "unlabeled"}
"""What people call class 0, whose name is given."""


def parse_classes(text: str, *, exhaustive: bool = False) -> Classes:
    """Read the class names of `--classes`. Raises `InputError` if they are none, or not valid."""
    names = [name.strip() for name in text.split(",")]
    if not any(names):
        raise InputError(
            f"--classes {quoted(text)} names no class: give names, such as stroma,tumor"
        )
    if not all(names):
        raise InputError(
            f"--classes {quoted(text)} has an empty name, class {names.index('') + 1}: name it, or "
            "remove the comma"
        )
    zero = class_zero(exhaustive)
    if taken := [name for name in names if spelling(name) == zero]:
        raise InputError(
            f"--classes {quoted(text)} names {quoted(taken[0])}, which class 0 is already: the "
            "pixels that no annotation or mask gives a class. Leave it out"
        )
    if spelling(names[0]) in BACKGROUNDS:
        raise InputError(
            f"--classes {quoted(text)} begins with {quoted(names[0])}, which would be class 1: "
            f"class 0 is {zero}, without being named. Leave it out; if it is a class of its own, "
            "name it behind another one"
        )
    try:
        return Classes.of(*names, exhaustive=exhaustive)
    except ValidationError as error:
        fault = explain(error, name=lambda _: "")
        raise InputError(f"--classes {shortened(text)}: {fault}") from error


def parse_renames(items: list[str] | None, classes: Classes | None) -> dict[str, str]:
    """Read `--rename` items, `<name in the annotation>=<class>`.

    Raises:
        InputError: an item has another form, or there is no such class.
    """
    names: dict[str, str] = {}
    for item in items or []:
        old, sign, new = (part.strip() for part in item.rpartition("="))
        if not (sign and old and new):
            raise InputError(f"--rename {quoted(item)} must be <name>=<class>, such as _0=tumor")
        known = {spelling(name): name for name in classes.names} if classes else {}
        if spelling(new) not in known:
            there = f"the classes are {all_quoted(known.values())}" if known else "give --classes"
            raise InputError(
                f"--rename {shortened(item)}: there is no class {quoted(new)}; {there}"
            )
        if old in names:
            raise InputError(f"--rename {shortened(item)}: {quoted(old)} is renamed twice")
        names[old] = known[spelling(new)]
    return names


def changed(request: R, changes: list[str] | None) -> R:
    """Return a copy of a request with some fields changed by `--set`.

    Args:
        request: the request.
        changes: items `<field>=<value>`; the field is a dotted name, the value is YAML.

    Raises:
        InputError: the request has no such field, a value is not valid for its field, or an item
            would undo an earlier one.
    """
    plain: dict[str, Any] = request.model_dump(mode="json")
    set_by: dict[str, str] = {}
    for item in changes or []:
        path, sign, value = item.partition("=")
        given = f"--set {shortened(item)}"
        if not sign:
            raise InputError(f"{given} must be <field>=<value>, such as regions.low=0.1")
        if lost := next((other for other in set_by if f"{other}.".startswith(f"{path}.")), None):
            raise InputError(f"{given} would undo {set_by[lost]}: give one of them")
        set_by[path] = given
        try:
            _put(plain, type(request), path.split("."), parse_yaml(value, given))
        except KeyError as error:
            known = did_you_mean(str(error.args[0]), error.args[1])
            raise InputError(
                f"{given}: {request.stage} has no field {quoted(path)}{known}"
            ) from error
    try:
        return type(request).model_validate(plain)
    except ValidationError as error:
        raise InputError(explain(error, type(request), _set_by(changes or []))) from error


def _put(part: dict[str, Any], kind: type[BaseModel], path: list[str], value: Any) -> None:
    """Set a field of a request, given as plain values; the fields of dicts may have any key.

    Raises:
        KeyError: there is no such field; its arguments are the name and the known names.
    """
    name, *rest = path
    field = kind.model_fields.get(name)
    if field is None:
        raise KeyError(name, fields_at(kind, ()))
    inner = next(models_of(field.annotation), None)
    if not rest and get_origin(field.annotation) is dict and part[name] and part[name] != value:
        raise InputError(
            f"--set {name}=… would undo what another option gave for {name}, {part[name]}: give "
            "all of it in one place"
        )
    if not rest:
        part[name] = value
    elif get_origin(field.annotation) is dict:
        part[name][".".join(rest)] = value
    elif inner is None or isinstance(part[name], list):
        raise KeyError(rest[0], ())
    else:
        part[name] = part[name] or {}
        _put(part[name], inner, rest, value)


def _set_by(changes: list[str]) -> Callable[[Place], str]:
    """Return a function that names a field by the `--set` that changed it."""

    def name(place: Place) -> str:
        path = dotted(place)
        within = [item for item in changes if item.startswith(f"{path}.")]
        over = [item for item in changes if f"{path}.".startswith(f"{item.partition('=')[0]}.")]
        if len(within) > 1 or not within + over:
            return path  # any of several may be the wrong one
        item = (within + over)[-1]
        given = f"--set {shortened(item)}"
        return given if path == item.partition("=")[0] else f"{given}: {path}"

    return name


OPTIONS = {
    "size": "--region-size",
    "stride": "--region-size",
    "run": "--model",
    "version": "--model",
    "proportions": "--proportion",
    "encoders": "--encoder",
    "maps.regions": "--maps",
    "maps.sampled": "--sample-maps",
    "crops.regions": "--crops",
}
"""Field → the option that sets it, where the option is not named as the field."""


class Group(TyperGroup):
    """The commands; a field that is not valid is named by the option that set it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ValidationError as error:
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            setting = error.title == Settings.__name__
            known = {name for each in (command.params if command else ()) for name in each.opts}

            def name(place: Place) -> str:
                path = dotted(place)
                if setting:
                    return f"HTD_{path.upper()}"
                own = f"--{path.replace('_', '-')}"
                option = own if own in known else OPTIONS.get(path)
                return option if option in known else path

            raise InputError(explain(error, name=name)) from error
