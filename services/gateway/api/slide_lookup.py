"""Find a slide of the caller's tenant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import PurePath
from typing import Annotated

from fastapi import Path

from services.gateway.api.access import Caller
from services.gateway.api.problems import ProblemError
from shared.contracts.base import Name
from shared.contracts.gateway import SlideInfo, SlideReference
from shared.contracts.ingest import CohortRecord, SlideRecord, cohort_key, slide_key
from shared.imaging.stored_slides import NoLabelMapError, StoredLabelMap, label_map_in
from shared.storage import DamagedObjectError, Store

SlideName = Annotated[Name, Path(description="name of the slide")]


def slide_info(store: Store, slide: str) -> SlideInfo | None:
    """Return the files and records of a slide in the store, or None if there are none.

    A slide that lies outside of the store has `…/` and its file's name as source: its folder is
    the owner's affair; see `source_of`.
    """
    prefix = slide_key(slide, "")
    stats = dict(store.stats(prefix))
    if not stats:
        return None
    sources = [key for key in stats if key.startswith(prefix + "source/")]
    annotations = [key for key in stats if key.startswith(prefix + "annotation/")]
    record, reference = (
        store.get_model(key, kind) if key in stats else None
        for key, kind in (
            (slide_key(slide), SlideRecord),
            (slide_key(slide, "reference.json"), SlideReference),
        )
    )
    maps = slide_key(slide, "labels/")
    main = [key for key in sources if key.count("/") == prefix.count("/") + 1]
    if isinstance(record, SlideRecord):
        record = record.model_copy(update={"source": _shown(record.source)})
    source = record.source if isinstance(record, SlideRecord) else None
    if source is None and isinstance(reference, SlideReference):
        source = reference.source
    return SlideInfo(
        slide=slide,
        source=source or next(iter(main), None),
        files={key: stats[key].size for key in (*sources, *annotations)},
        annotation=next(iter(annotations), None),
        record=record if isinstance(record, SlideRecord) else None,
        label_maps={
            key.removeprefix(maps).removesuffix(".tif"): key
            for key in stats
            if key.startswith(maps)
        },
    )


def _shown(source: str) -> str:
    path = PurePath(source)
    return f"…/{path.name}" if path.is_absolute() else source


def source_of(store: Store, info: SlideInfo) -> str | None:
    """Return the key or path of a slide's main file; None if it has none."""
    if info.source is None or info.source in info.files:
        return info.source
    key = slide_key(info.slide)
    return store.get_model(key, SlideRecord).source if info.record else info.source


def wanted_label_map(caller: Caller, slide: str, cohort: str | None) -> StoredLabelMap:
    """Return the label map that a cohort has of a slide.

    Args:
        caller: sender of the request.
        slide: name of the slide.
        cohort: name of the cohort; None: the first by name that has a label map of the slide.

    Raises:
        ProblemError: there is no such slide, or no such label map (404).
    """
    info = find_slide(caller, slide)
    try:
        cohort = cohort or next(label_maps(caller.store, info), None)
        if cohort is None:
            raise NoLabelMapError(f"no cohort has a label map of slide {slide!r}")
        return label_map_in(caller.store, slide, cohort)
    except NoLabelMapError as error:
        raise ProblemError(404, "no-label-map", str(error)) from error


def label_maps(store: Store, info: SlideInfo) -> Iterator[str]:
    """Yield the cohorts that have a label map of a slide, by name; not those that are damaged."""
    for cohort in sorted(info.label_maps):
        with suppress(NoLabelMapError, DamagedObjectError):
            label_map_in(store, info.slide, cohort)
            yield cohort


def cohort_of(caller: Caller, cohort: str, slide: str) -> tuple[CohortRecord, str]:
    """Return the record of a cohort and its name of a slide.

    Raises `ProblemError` if it has no such slide (404).
    """
    record = caller.store.get_model(cohort_key(cohort), CohortRecord)
    name = record.name_of(slide)
    if name is None:
        raise ProblemError(404, "not-in-cohort", f"cohort {cohort!r} has no slide {slide!r}")
    return record, name


def find_slide(caller: Caller, slide: str) -> SlideInfo:
    """Return a slide's files and records. Raises `ProblemError` if there is no slide (404)."""
    info = slide_info(caller.store, slide)
    if info is None:
        raise ProblemError(
            404,
            "no-slide",
            f"there is no slide {slide!r}",
            remedy="GET /v1/slides lists those there are",
        )
    return info
