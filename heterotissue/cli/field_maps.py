"""The label map of a field: a mask, a key in the store, outlines, or a map to be sampled."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from heterotissue.cli.options import parse_proportions, parse_renames
from heterotissue.progress import say
from shared.contracts.annotations import formats_of
from shared.contracts.field import FieldRequest
from shared.contracts.models import ModelRecord
from shared.errors import InputError, quoted
from shared.models import check_layouts
from shared.storage import Store


def choose_map(
    store: Store,
    model: ModelRecord,
    labels: str | None,
    size: str | None,
    rename: list[str] | None,
    sample_map: str | None,
    proportion: list[str] | None,
) -> dict[str, Any]:
    """Read the options of a field's label map, and put a given map into the store.

    Returns:
        The fields of `FieldRequest` that say what the map is.

    Raises:
        InputError: options do not go together, or the map does not fit the model.
    """
    from shared.datasets.field_inputs import check_field, layout_shares

    if (labels is None) == (sample_map is None):
        raise InputError("a field needs a label map: give either --labels or --sample-map")
    if sample_map is not None:
        if size is not None or rename:
            raise InputError(
                "--size and --rename belong to --labels; --sample-map has a size itself"
            )
        width, height = parse_size("--sample-map", sample_map)
        shares = parse_proportions(proportion or [])
        check_layouts(model)
        check_field(store, model, width, height)
        layout_shares(store, model, shares)  # raises if the shares cannot be had
        return {"sampled": {"width": width, "height": height, "proportions": shares}}
    if proportion:
        raise InputError("--proportion is of a sampled map: give --sample-map <width>x<height>")
    names = parse_renames(rename, model.classes)
    return put_labels(store, model, str(labels), size, names)


def parse_size(option: str, text: str) -> tuple[int, int]:
    """Read <width>x<height>. Raises `InputError` for anything else."""
    sides = re.fullmatch(r"(\d{1,7})[xX×](\d{1,7})", text)
    if sides is None:
        raise InputError(
            f"{option} {quoted(text)} must be <width>x<height> in pixels, such as 4096x2048"
        )
    return int(sides[1]), int(sides[2])


def put_labels(
    store: Store, model: ModelRecord, labels: str, size: str | None, names: dict[str, str]
) -> dict[str, str]:
    """Put a mask, or drawn outlines, into the store.

    Args:
        store: the store.
        model: the model, which gives the classes and the resolution.
        labels: path of the file; the key of a label map in the store stays as it is.
        size: width and height of the field, for outlines.
        names: name, value or colour in the file → class name.

    Returns:
        The fields of `FieldRequest` that name the label map.
    """
    from shared.datasets.field_inputs import put_label_map
    from shared.imaging.sandboxed_mask import open_mask

    path = Path(labels)
    outlined = any(kind.name != "mask" for kind in formats_of(path.name))
    if outlined and size is None:
        raise InputError(
            f"{path.name} holds outlines, which tell no size of the field: give --size "
            "<width>x<height>, in pixels"
        )
    if size is not None and not outlined:
        raise InputError(f"--size is for outlines, such as GeoJSON: {path.name} has a size itself")
    if not path.exists() and not path.is_absolute() and _in_store(store, labels):
        if names or outlined:
            raise InputError(
                f"{labels} is a key in the store: there it must be a label map of the model's "
                "classes, without --rename; give outlines and other masks as files"
            )
        return _stored(store, model, labels)
    if size is not None:
        return {"labels": _draw(store, model, path, parse_size("--size", size), names)}
    if not path.exists():
        raise InputError(f"--labels {labels}: there is no such file, and no such key in the store")
    return {"labels": put_label_map(store, open_mask(path), model, names)}


def check_crops_of(store: Store, model: ModelRecord, request: FieldRequest) -> None:
    """Check the crops of a field against its label map, if this is not sampled yet.

    Raises:
        InputError: the map does not fit the model, or there are too few or too many crops for it.
    """
    from shared.datasets.field_crops import check_sources
    from shared.datasets.field_inputs import count_labels
    from shared.imaging.stored_slides import open_label_map

    if request.sampled is None:
        with open_label_map(store, request.map_key, request.map_digest) as labels:
            present = np.flatnonzero(count_labels(labels, model)).tolist()
        check_sources(store, model, present, request.crops, request.appearances)


def _in_store(store: Store, key: str) -> bool:
    """Say whether a text is the key of an object; a path that can be none is not."""
    try:
        return store.exists(key)
    except InputError:
        return False


def _stored(store: Store, model: ModelRecord, key: str) -> dict[str, str]:
    """Name a label map of the store; one of a slide must be that of its cohort, as it is now."""
    from shared.datasets.field_inputs import check_classes
    from shared.imaging.stored_slides import label_map_in

    parts = PurePosixPath(key).parts
    if len(parts) != 4 or (parts[0], parts[2]) != ("slides", "labels"):
        return {"labels": key}
    found = label_map_in(store, parts[1], PurePosixPath(key).stem)
    check_classes(found, model)
    return {"labels": key} | ({"labels_sha256": found.sha256} if found.sha256 else {})


def _draw(
    store: Store, model: ModelRecord, path: Path, size: tuple[int, int], names: Mapping[str, str]
) -> str:
    """Draw outlines, in pixels of the field, as those of slides are drawn."""
    from services.ingest.annotations.drawing import draw_labels
    from services.ingest.annotations.outlines import SlideGeometry
    from shared.contracts.ingest import IngestRequest, SlideSource
    from shared.contracts.regions import RegionRule
    from shared.datasets.field_inputs import check_field, put_label_map
    from shared.imaging.sandboxed_mask import open_mask

    check_field(store, model, *size)
    source = SlideSource(slide="field", source=str(path), labels=str(path))
    request = IngestRequest(
        cohort="field",
        slides=(source,),
        classes=model.classes,
        label_names=dict(names),
        labels_origin="slide",
        labels_unit="px",
        labels_on_tissue=0,
        regions=RegionRule(mpp=model.mpp),
    )
    everywhere = np.ones((1, 1), np.bool_)
    with tempfile.TemporaryDirectory(prefix="htd-field-") as folder:
        file = Path(folder) / "labels.tif"
        geometry = SlideGeometry(*size, model.mpp, model.mpp)
        try:
            drawn = draw_labels(file, path, geometry, everywhere, source, request)
        except InputError as error:
            width, height = size
            raise InputError(
                f"field of {width}×{height} px from outlines, which are in its own pixels: {error}"
            ) from error
        if not drawn["painted"]:  # of a slide that may mean that all of it is other tissue
            raise InputError(f"{path.name} has no outline of a class of {model.ref}: draw some")
        for reason, count in drawn["skipped"].items():
            say(f"note: {path.name}: left out {count} {reason}")
        if drawn["mpp"]:
            say(
                f"note: {path.name} states {drawn['mpp']:.4g} µm/px; it is drawn in pixels of the "
                f"field, at {model.mpp:.4g}"
            )
        return put_label_map(store, open_mask(file), model)
