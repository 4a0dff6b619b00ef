"""Encoding the patches of a slide, whole or in parts that several workers share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from services.embed.filtering import faults
from shared.arrays import Float32, Int64
from shared.contracts.embed import EmbedRequest, Encoded, features_key, part_key
from shared.contracts.ingest import CohortRecord, patches_key
from shared.encoders.loading import Encoder
from shared.errors import InputError
from shared.features import FeaturesFile, write_features
from shared.imaging.patch_reading import read_patches
from shared.imaging.stored_slides import open_slide, read_record
from shared.jobs import Context
from shared.storage import DamagedObjectError, Store, sha256, sha256_file
from shared.storage.formats import read_table

UNIT_PATCHES = 32_768
"""Largest number of patches of a unit; their features are held in memory."""


def part_count(patches: int) -> int:
    """Return the number of units that a slide with so many patches is cut into."""
    return max(1, -(-patches // UNIT_PATCHES))


def part_bounds(y: Int64, part: int, parts: int) -> tuple[int, int]:
    """Return the first patch of a part, and that after its last: whole rows of patches.

    Args:
        y: int64 (n,), upper edges of the patches of a slide, which are listed row by row.
        part: number of the part, from 0.
        parts: number of parts.
    """
    ends = [
        int(np.searchsorted(y, y[len(y) * number // parts])) if number < parts else len(y)
        for number in (part, part + 1)
    ]
    return (ends[0] if part else 0), ends[1]


def read_corners(store: Store, cohort: CohortRecord, slide: str) -> Int64:
    """Return the corners of a slide's patches: int64 (n, 2), level-0 pixels, row by row.

    Raises:
        DamagedObjectError: they are not those of the cohort.
    """
    key = patches_key(cohort.cohort, slide)
    table = read_table(store, key, ["x", "y"])
    corners = np.stack([np.asarray(table["x"]), np.asarray(table["y"])], 1).astype("<i8")
    if cohort.places.get(slide) not in {None, sha256(corners.tobytes())}:
        raise DamagedObjectError(store, key, "it has other patches than the cohort")
    return corners.astype(np.int64)


def encode_patches(
    request: EmbedRequest,
    record: CohortRecord,
    name: str,
    encoder: Encoder,
    key: str,
    context: Context,
    part: tuple[int, int] = (0, 1),
) -> Encoded:
    """Write the features of a slide's patches, or of a part of them.

    Args:
        request: the request.
        record: the cohort.
        name: name of the slide.
        encoder: the encoder.
        key: where the features are stored.
        context: store and progress report.
        part: number of the part, from 0, and the number of parts.

    Returns:
        What became of the patches. Those that the request filters out are not encoded.

    Raises:
        InputError: more than `request.max_damaged` of the slide's patches cannot be read.
    """
    corners = read_corners(context.store, record, name)
    total, grid = len(corners), record.patches
    if total:
        corners = corners[slice(*part_bounds(corners[:, 1], *part))]
    features: Float32 = np.empty((len(corners), encoder.dim), np.float32)
    kept = np.zeros(len(corners), bool)
    done = damaged = white = blurred = 0
    with open_slide(context.store, record, name) as (slide, slide_record):
        for batch in read_patches(slide, corners, grid.size, grid.mpp, request.batch_size):
            damaged += batch.damaged
            check_damage(request, name, damaged, total)
            too_white, too_blurred = faults(batch.images, request)
            white, blurred = white + int(too_white.sum()), blurred + int(too_blurred.sum())
            good = ~(too_white | too_blurred)
            images = batch.images if good.all() else batch.images[good]
            if len(images):
                rows = batch.rows[good]
                features[rows] = encoder.encode(images, request.batch_size)
                kept[rows] = True
            done += len(batch.rows) + batch.damaged
            context.progress(done, len(corners), name)
    with context.store.writing(key) as path:
        if not kept.all():
            corners, features = corners[kept], features[kept]
        about = (encoder.dim, slide_record, grid, request.encoder)
        write_features(path, corners, [features], *about, filters=filters_of(request))
        return Encoded(
            patches=len(corners), damaged=damaged, white=white, blurred=blurred,
            sha256=sha256_file(path),
        )  # fmt: skip


def filters_of(request: EmbedRequest) -> dict[str, float]:
    """Return the filters of patches that a request asks for, by name."""
    filters = {"max_white": request.max_white, "min_sharpness": request.min_sharpness}
    return {name: value for name, value in filters.items() if value is not None}


def join_parts(
    request: EmbedRequest, record: CohortRecord, name: str, parts: int, store: Store
) -> tuple[int, Encoded]:
    """Join the features of a slide's parts into one file, and remove the parts.

    Returns:
        The width of the features, and what became of all patches of the slide.

    Raises:
        InputError: more than `request.max_damaged` of the slide's patches cannot be read.
    """
    total = len(read_corners(store, record, name))
    keys, about = (
        [part_key(request.encoder, request.cohort, name, part, suffix) for part in range(parts)]
        for suffix in (".h5", ".json")
    )
    each = [store.get_model(key, Encoded) for key in about]
    corners = []
    for key in keys:  # one at a time, as together they may not fit into the cache
        with FeaturesFile(store.local(key)) as file:
            corners.append(file.coords)
            dim = file.dim
    joined = np.concatenate(corners)
    damaged, white, blurred = (
        sum(getattr(part, count) for part in each) for count in ("damaged", "white", "blurred")
    )
    check_damage(request, name, damaged, total)
    key = features_key(request.encoder, request.cohort, name)
    with store.writing(key) as written:
        write_features(
            written, joined, _features(store, keys), dim, read_record(store, record, name),
            record.patches, request.encoder, filters=filters_of(request),
        )  # fmt: skip
        digest = sha256_file(written)
    for old in (*keys, *about):
        store.delete(old)
    return dim, Encoded(
        patches=len(joined), damaged=damaged, white=white, blurred=blurred, sha256=digest
    )


def check_damage(request: EmbedRequest, name: str, damaged: int, patches: int) -> None:
    """Raise `InputError` if too many of a slide's patches cannot be read."""
    if damaged > request.max_damaged * patches:
        raise InputError(
            f"{name}: more than {request.max_damaged:.2g} of its {patches} patches cannot be "
            "read. The slide's file is damaged or incomplete: copy it again, or raise max_damaged"
        )


def _features(store: Store, keys: list[str]) -> Iterator[Float32]:
    for key in keys:
        with FeaturesFile(store.local(key)) as file:
            yield file.features()
