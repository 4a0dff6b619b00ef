"""The slides that regions and models come from, as they are compared with others."""

from __future__ import annotations

from collections.abc import Iterable

from shared.contracts.base import Split
from shared.contracts.ingest import CohortRecord, cohort_key
from shared.contracts.models import ModelRecord
from shared.contracts.regions import RegionSet, SourceSlide, SourceSlides
from shared.contracts.train import training_key
from shared.imaging.region_sets import load_region_set
from shared.storage import ObjectNotFoundError, Store, checked_bytes


def slides_of(store: Store, regions: RegionSet, *splits: Split) -> list[SourceSlide]:
    """Return the slides of splits of a region set; without splits, of all."""
    parts = regions.of_split(*splits) if splits else regions.slides
    try:
        contents = store.get_model(cohort_key(regions.cohort), CohortRecord).sha256
    except ObjectNotFoundError:  # tiles have no cohort of slides
        contents = {}
    return [
        SourceSlide(slide=part.slide, sha256=contents.get(part.slide), patient=part.patient)
        for part in parts
    ]


def trained_slides(store: Store, model: ModelRecord) -> list[SourceSlide]:
    """Return the slides that a model was trained on; today's of its regions, if it is older.

    Raises:
        ObjectNotFoundError: the store holds the list no longer.
        DamagedObjectError: it is not as it was made.
    """
    if not model.slides:
        return slides_of(store, load_region_set(store, model.regions), "train")
    key = training_key(model.run, "slides.json")
    data = checked_bytes(store, key, model.slides)
    return list(store.parse(key, data, SourceSlides).slides)


def among(slides: Iterable[SourceSlide], others: Iterable[SourceSlide]) -> list[str]:
    """Return the names of the slides that are among others too.

    Slides are the same if their contents are; where one is not known, if their names are.
    """
    every = list(others)
    contents = {each.sha256 for each in every if each.sha256}
    named = {each.slide for each in every}
    unknown = {each.slide for each in every if not each.sha256}

    def seen(own: SourceSlide) -> bool:
        if own.sha256 is None:
            return own.slide in named
        return own.sha256 in contents or own.slide in unknown

    return sorted(each.slide for each in slides if seen(each))
