"""Write the label map of an ingested slide as an annotation for another programme."""

from __future__ import annotations

from pathlib import Path

from services.ingest.annotations.outlines import SlideGeometry
from services.ingest.annotations.writing import write_annotation
from shared.contracts.annotations import LabelFormat
from shared.contracts.ingest import CohortRecord, LabelsOrigin, cohort_key
from shared.errors import InputError
from shared.imaging.stored_slides import find_label_map, open_label_map, open_slide
from shared.storage import Store


def write_labels(
    store: Store,
    slide: str,
    cohort: str,
    kind: LabelFormat,
    path: Path,
    origin: LabelsOrigin = "slide",
) -> None:
    """Write the label map of a cohort's slide as an annotation.

    Args:
        store: holds the cohort.
        slide: name of the slide.
        cohort: name of the cohort, whose classes the label map has.
        kind: format of the annotation.
        path: file to write; it must not exist.
        origin: corner that outlines count from, 'slide' or 'bounds', as in QuPath.

    Raises:
        InputError: the cohort has no such slide, the slide has no labels, the file exists, or
            the format cannot hold the labels.
    """
    if path.exists():
        raise InputError(f"{path} exists already: choose another name, or remove it")
    record = store.get_model(cohort_key(cohort), CohortRecord)
    found = find_label_map(store, record, slide)
    with (
        open_slide(store, record, slide) as (opened, _),
        open_label_map(store, found.key, found.sha256) as labels,
    ):
        write_annotation(
            path, kind, labels.whole(), labels.mpp, found.classes,
            SlideGeometry.of(opened), origin,
        )  # fmt: skip
