"""The names in a report: pseudonyms of the evaluated dataset instead of slides and patients."""

from __future__ import annotations

import re

from shared.contracts.evaluate import RealSplit, Report
from shared.contracts.ingest import CohortRecord, cohort_key
from shared.contracts.regions import RegionSet
from shared.datasets.pseudonyms import Kind, Pseudonyms
from shared.patients import alike, known_origin
from shared.storage import ObjectNotFoundError, Store


def with_pseudonyms(report: Report, names: dict[str, str]) -> Report:
    """Return a report in which pseudonyms stand for the slides, and for the names in cautions.

    Args:
        report: the report.
        names: name → pseudonym, by `report_names`.
    """

    def hidden(split: RealSplit) -> RealSplit:
        return split.model_copy(update={"slides": tuple(names[name] for name in split.slides)})

    longest_first = sorted(names, key=len, reverse=True)
    word = re.compile(r"(?i)(?<![\w-])(" + "|".join(map(re.escape, longest_first)) + r")(?![\w-])")
    folded = {name.casefold(): pseudonym for name, pseudonym in names.items()}
    cautions = tuple(
        word.sub(lambda found: folded[found[0].casefold()], text) for text in report.cautions
    )
    return report.model_copy(
        update={
            "real_train": hidden(report.real_train),
            "real_test": hidden(report.real_test),
            "cautions": cautions,
        }
    )


def report_names(store: Store, real: RegionSet, pseudonyms: Pseudonyms) -> dict[str, str]:
    """Return name → pseudonym of the slides and patients that a report may name.

    They are those of the region set and of its cohort, and what the names of slides tell of
    patients.
    """
    slides = {part.slide for part in real.slides} | {part.slide for part in real.left_out}
    patients = {part.patient for part in real.slides} | {part.patient for part in real.left_out}
    try:
        cohort = store.get_model(cohort_key(real.cohort), CohortRecord)
        slides |= set(cohort.splits)
        patients |= set(cohort.patients.values())
    except ObjectNotFoundError:
        pass  # a set of tiles has no cohort
    patients |= {known.patient for name in slides if (known := known_origin(name))}
    patients |= set(alike(slides))
    kinds: tuple[tuple[Kind, set[str | None]], ...] = (("patient", patients), ("slide", {*slides}))
    return {name: pseudonyms.of(kind, name) for kind, every in kinds for name in every if name}
