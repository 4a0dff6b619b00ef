"""Makes, finds and deletes studies."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from services.gateway.reader_study.design import choose, class_shares, series
from services.gateway.reader_study.pictures import encode, pad
from services.gateway.reader_study.records import (
    Key,
    Place,
    Series,
    StudyRecord,
    Submitted,
    Truth,
)
from services.gateway.reader_study.sets import (
    Candidate,
    ImageSet,
    common_size,
    read_images,
)
from shared.contracts.reader_study import (
    KINDS,
    Kind,
    ReaderProgress,
    StudyBody,
    StudyStatus,
    study_key,
)
from shared.errors import InputError
from shared.storage import ObjectNotFoundError, Store


def make_study(store: Store, body: StudyBody, sets: Sequence[ImageSet]) -> StudyRecord:
    """Make a study: choose the images, encode them, and draw a series for every reader.

    If this fails, everything that it has written is deleted. Remains of an earlier attempt that
    was killed are deleted first.

    Args:
        store: receives the study.
        body: the request; there must be no study of this name.
        sets: the image sets that the request names.

    Raises:
        InputError: the sets hold too few images, or differ in resolution.
    """
    store.delete_prefix(study_key(body.study, ""))
    size, mpp = common_size(sets)
    seed = secrets.randbits(63) if body.seed is None else body.seed
    rng = np.random.default_rng(seed)
    chosen = _choose(sets, body.images, rng)
    try:
        return _write(store, body, chosen, size, mpp, seed, rng)
    except BaseException:
        store.delete_prefix(study_key(body.study, ""))
        raise


def _choose(sets: Sequence[ImageSet], images: int, rng: np.random.Generator) -> list[Candidate]:
    """Choose `images` images of each kind."""
    candidates: dict[Kind, list[Candidate]] = {kind: [] for kind in KINDS}
    for item in sets:
        for candidate in item.candidates:
            candidates[candidate.kind].append(candidate)
    for kind, own in candidates.items():
        if len(own) < images:
            raise InputError(
                f"{images} {kind} images are asked for, but the sets hold {len(own)}: "
                "ask for fewer, or name more sets"
            )
    room = {kind: Counter(item.tissue for item in candidates[kind]) for kind in KINDS}
    shares = class_shares(images, room)
    return [
        item
        for kind in KINDS
        for item in choose(
            shares[kind], [(item.source, item.tissue, item) for item in candidates[kind]], rng
        )
    ]


def _write(
    store: Store,
    body: StudyBody,
    chosen: list[Candidate],
    size: int,
    mpp: float,
    seed: int,
    rng: np.random.Generator,
) -> StudyRecord:
    names = [secrets.token_hex(16) for _ in chosen]
    encoded = [b""] * len(chosen)
    for position, image in read_images(store, chosen):
        encoded[position] = encode(image, size)
    # Store pictures in the order of their random names, because dates of objects show an order.
    for name, data in sorted(zip(names, pad(encoded), strict=True)):
        store.put(study_key(body.study, f"images/{name}.jpg"), data)
    truths = tuple(
        Truth(picture=name, kind=item.kind, source=item.source, key=item.key, tissue=item.tissue)
        for name, item in zip(names, chosen, strict=True)
    )
    pictures: dict[Kind, list[str]] = {
        kind: [truth.picture for truth in truths if truth.kind == kind] for kind in KINDS
    }
    readers = {f"r{number}": name for number, name in enumerate(body.readers, 1)}
    for reader, order in zip(readers, series(pictures, len(readers), rng), strict=True):
        places = (Place(image=secrets.token_hex(16), picture=name) for name in order)
        store.put_json(study_key(body.study, f"series/{reader}.json"), Series(places=tuple(places)))
    store.put_json(study_key(body.study, "key.json"), Key(seed=seed, pictures=truths))
    record = StudyRecord(
        study=body.study,
        created=datetime.now(UTC),
        real=body.real,
        synthetic=body.synthetic,
        images=body.images,
        size=size,
        mpp=mpp,
        readers=readers,
    )
    store.put_json(study_key(body.study, "study.json"), record)
    return record


def find_study(store: Store, study: str) -> StudyRecord | None:
    """Return the record of a study; None if there is no such study, or it is not complete yet."""
    try:
        return store.get_model(study_key(study, "study.json"), StudyRecord)
    except ObjectNotFoundError:
        return None


def find_submitted(store: Store, study: str, reader: str) -> datetime | None:
    """Return the time when a reader submitted; None if the reader has not."""
    record = submission(store, study, reader)
    return record.time if record is not None else None


def submission(store: Store, study: str, reader: str) -> Submitted | None:
    """Return what a reader has submitted; None if the reader has not."""
    try:
        return store.get_model(study_key(study, f"submitted/{reader}.json"), Submitted)
    except ObjectNotFoundError:
        return None


def study_status(store: Store, record: StudyRecord) -> StudyStatus:
    """Return the settings of a study, its images by class, and the progress of its readers."""
    key = store.get_model(study_key(record.study, "key.json"), Key)
    classes: dict[str, dict[Kind, int]] = {}
    for truth in key.pictures:
        counts = classes.setdefault(truth.tissue, {"real": 0, "synthetic": 0})
        counts[truth.kind] += 1
    return StudyStatus(
        study=record.study,
        created=record.created,
        real=record.real,
        synthetic=record.synthetic,
        images=record.images,
        size=record.size,
        mpp=record.mpp,
        classes=classes,
        readers=tuple(
            ReaderProgress(
                reader=reader,
                name=name,
                answered=sum(1 for _ in store.list(study_key(record.study, f"answers/{reader}/"))),
                submitted=find_submitted(store, record.study, reader),
            )
            for reader, name in record.readers.items()
        ),
    )


def delete_study(store: Store, study: str) -> None:
    """Delete a study with its pictures and answers."""
    store.delete(study_key(study, "study.json"))  # first, to hide a half-deleted study
    store.delete_prefix(study_key(study, ""))
