"""Commands of fields: one image of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

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
from shared.contracts.field import FieldRequest
from shared.contracts.image import GivenCrop
from shared.contracts.models import ModelRecord
from shared.errors import InputError
from shared.models import find_version, read_model
from shared.storage import Store

app = typer.Typer()

CropOption = Annotated[
    list[str] | None,
    typer.Option(
        help="<class>=<picture>, a square of its tissue (repeatable); default: from a slide of the "
        "model's regions."
    ),
]


@app.command(epilog=example("htd field --model lung --labels map.tif --crop tumor=tumor.png"))
def field(
    model: ModelOption,
    labels: Annotated[
        str,
        typer.Option(help="Mask with the class index of each pixel, or a label map's key."),
    ],
    field: Annotated[str, typer.Option(help="Name of the field.", callback=check_name)] = "field",
    crop: CropOption = None,
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
    """Make one image of any size from a label map, as a slide with its labels."""
    target = Target.of(store, broker, dry_run)
    ref = find_version(target.store, model)
    record = read_model(target.store, ref)
    request = FieldRequest.model_validate(
        {
            "field": field,
            "model": ref.name,
            "version": ref.version,
            "labels": put_labels(target.store, labels, record),
            "crops": put_crops(target.store, crop or [], record),
            "steps": steps,
            "guidance_map": guidance_map,
            "guidance_crops": guidance_crops,
            "staining": staining,
            "seed": seed,
            "compression": compression,
        }
    )
    run_and_end(target, changed(request, change), fresh=fresh, replace=replace)


def put_labels(store: Store, labels: str, model: ModelRecord) -> str:
    """Put a mask into the store, and return its key; a key of a label map stays as it is."""
    from shared.datasets.field_inputs import put_label_map
    from shared.imaging.sandboxed_mask import open_mask

    path = Path(labels)
    if not path.exists() and not path.is_absolute() and store.exists(labels):
        return labels
    return put_label_map(store, open_mask(path), model)


def put_crops(store: Store, items: list[str], model: ModelRecord) -> tuple[GivenCrop, ...]:
    """Put crops, given as <class>=<picture>, into the store."""
    from shared.datasets.field_inputs import put_crop
    from shared.imaging.pictures import read_picture

    crops = []
    for item in items:
        tissue, sign, path = item.partition("=")
        if not (tissue and sign and path):
            raise InputError(f"--crop {item!r} must be <class>=<picture>, such as tumor=tumor.png")
        pixels = np.asarray(read_picture(Path(path)).convert("RGB"), np.uint8)
        crops.append(put_crop(store, tissue, pixels, model))
    return tuple(crops)
