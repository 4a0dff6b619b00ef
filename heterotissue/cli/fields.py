"""The command of fields."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from heterotissue.cli.field_maps import check_crops_of, choose_map
from heterotissue.cli.options import (
    BrokerOption,
    DryRunOption,
    FreshOption,
    GuidanceCropsOption,
    GuidanceMapOption,
    ModelOption,
    ReplaceOption,
    SeedOption,
    SetOption,
    StainingOption,
    StepsOption,
    StoreOption,
    changed,
    check_name,
    example,
)
from heterotissue.cli.outcome import run_and_end
from heterotissue.running import Target
from shared.contracts.field import FieldRequest, PlacedCrop
from shared.contracts.image import GivenCrop
from shared.contracts.models import ModelRecord
from shared.errors import InputError, shortened
from shared.models import find_version, read_model
from shared.storage import Store

app = typer.Typer()

PLACE = re.compile(r"@([-+.\d]+|nan),([-+.\d]+|nan)$")
"""The end of a crop's name that says where a field looks like it."""


@app.command(epilog=example("htd field --model lung --labels map.tif --crop tumor=tumor.png"))
def field(
    model: ModelOption,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Mask with the class index of each pixel, outlines (needs --size), or a label "
            "map's key."
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="<width>x<height> of the field that outlines are drawn in, pixels."),
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(help="<value, colour or name in --labels>=<class> (repeatable)."),
    ] = None,
    sample_map: Annotated[
        str | None,
        typer.Option(help="<width>x<height> of a label map that the layout model samples, pixels."),
    ] = None,
    proportion: Annotated[
        list[str] | None,
        typer.Option(
            help="<class>=<share of labelled pixels> of the sampled map, e.g. tumor=0.4 "
            "(repeatable)."
        ),
    ] = None,
    field: Annotated[str, typer.Option(help="Name of the field.", callback=check_name)] = "field",
    crop: Annotated[
        list[str] | None,
        typer.Option(
            help="<class>=<picture>, a square of its tissue (repeatable). "
            "<class>=<picture>@<x>,<y> gives the place where tissue looks so, as shares of width "
            "and height; between places it changes smoothly. Default: from slides of the model's "
            "regions."
        ),
    ] = None,
    appearances: Annotated[
        int, typer.Option(help="Number of slides that give crops, if you give none.")
    ] = 1,
    steps: StepsOption = None,
    guidance_map: GuidanceMapOption = None,
    guidance_crops: GuidanceCropsOption = None,
    staining: StainingOption = None,
    seed: SeedOption = 0,
    compression: Annotated[
        str, typer.Option(help="jpeg (of quality 95), or deflate (without loss).")
    ] = "jpeg",
    store: StoreOption = None,
    broker: BrokerOption = None,
    fresh: FreshOption = False,
    replace: ReplaceOption = False,
    dry_run: DryRunOption = False,
    change: SetOption = None,
) -> None:
    """Make one image of any size from a label map, as a slide with its labels.

    The label map is a mask, drawn from outlines (such as GeoJSON), or sampled by the
    model's layout model.
    """
    target = Target.of(store, broker, dry_run)
    ref = find_version(target.store, model)
    record = read_model(target.store, ref)
    request = FieldRequest.model_validate(
        {
            "field": field,
            "model": ref.name,
            "version": ref.version,
            **choose_map(target.store, record, labels, size, rename, sample_map, proportion),
            "crops": put_placed_crops(target.store, crop or [], record),
            "appearances": appearances,
            "steps": steps,
            "guidance_map": guidance_map,
            "guidance_crops": guidance_crops,
            "staining": staining,
            "seed": seed,
            "compression": compression,
        }
    )
    request = changed(request, change)
    check_crops_of(target.store, record, request)
    run_and_end(target, request, fresh=fresh, replace=replace)


def put_crops(store: Store, items: list[str], model: ModelRecord) -> tuple[GivenCrop, ...]:
    """Put crops, given as <class>=<picture>, into the store."""
    from shared.datasets.field_inputs import put_crop
    from shared.imaging.tile_images import read_image

    crops = []
    for tissue, path in map(split_crop, items):
        pixels = read_image(Path(path)).pixels
        crops.append(put_crop(store, tissue, pixels, model))
    return tuple(crops)


def put_placed_crops(store: Store, items: list[str], model: ModelRecord) -> tuple[PlacedCrop, ...]:
    """Put crops, given as <class>=<picture> or <class>=<picture>@<x>,<y>, into the store."""
    given = put_crops(store, [PLACE.sub("", item) for item in items], model)
    placed = []
    for crop, item in zip(given, items, strict=True):
        found = PLACE.search(item)
        try:
            at = found and found.groups()
            placed.append(PlacedCrop.model_validate(crop.model_dump() | {"at": at}))
        except ValidationError as error:
            raise InputError(
                f"--crop {shortened(item)}: the place must be two shares from 0 to 1, such as "
                "@0.1,0.5"
            ) from error
    return tuple(placed)


def split_crop(item: str) -> tuple[str, str]:
    tissue, sign, path = item.partition("=")
    if not (tissue and sign and path):
        raise InputError(f"--crop {item!r} must be <class>=<picture>, such as tumor=tumor.png")
    return tissue, path
