"""Splits of a cohort: by patient or site, with the classes spread over the splits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from scipy.cluster.hierarchy import DisjointSet

from services.ingest.tile_tables import Row, read_tiles
from services.ingest.tiles import given_splits, tile_patients
from shared.contracts.base import Split, SplitFractions
from shared.contracts.ingest import (
    CohortRecord,
    IngestRequest,
    SkippedSlide,
    check_divided,
    cohort_key,
)
from shared.contracts.regions import RegionSet, region_set_key, region_table_key
from shared.errors import InputError
from shared.patients import alike, folded
from shared.storage import DamagedObjectError, ObjectNotFoundError, Store
from shared.storage.formats import read_table


@dataclass(frozen=True)
class Member:
    """What decides the split of a slide.

    Attributes:
        patient, site: where known.
        given: split that the request states.
        classes: indices of the classes in its regions.
    """

    patient: str | None
    site: str | None
    given: Split | None
    classes: Collection[int]


def members_of(
    request: IngestRequest, tiles: dict[str, list[Row]], done: Mapping[str, dict[str, Any]]
) -> dict[str, Member]:
    """Collect what decides the splits of the slides in `done`, or of all slides if it is empty.

    Raises:
        InputError: tiles of a slide are in two splits, or of two patients, or, unless the request
            allows that, tiles of a patient are in two splits.
    """
    given, patients = given_splits(tiles), tile_patients(tiles)
    members = {slide: Member(patients[slide], None, given.get(slide), ()) for slide in tiles} | {
        item.slide: Member(item.origin.patient, item.origin.site, item.split, ())
        for item in request.slides
    }
    patient, site = _Spelling(), _Spelling()
    for name, item in members.items():
        members[name] = replace(item, patient=patient.of(item.patient), site=site.of(item.site))
    if not request.allow_leakage:
        try:
            check_divided({name: (item.patient, item.given) for name, item in members.items()})
        except ValueError as error:
            raise InputError(str(error)) from error
    counts = {name: result.get("class_regions", ()) for name, result in done.items()}
    return {
        name: replace(
            members[name],
            classes=[index for index, count in enumerate(counts.get(name, ())) if count],
        )
        for name in done or members
    }


class _Spelling:
    """The first spelling of each identifier, as 'P1' and 'p1' are one patient."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}

    def of(self, identifier: str | None) -> str | None:
        return identifier and self._first.setdefault(folded(identifier), identifier)


@dataclass(frozen=True)
class Earlier:
    """The splits of a cohort as it was before, of those slides whose content is the same.

    Attributes:
        splits: slide → split.
        patients: slide → patient, where known.
        rule: what the splits were assigned by; None: not known.
        mixed: slide → splits of its tiles, which were of other slides before, and in several.
    """

    splits: Mapping[str, Split]
    patients: Mapping[str, str]
    rule: SplitFractions | None
    mixed: Mapping[str, Collection[Split]] = field(default_factory=dict)


def assign_splits(
    rule: SplitFractions, members: Mapping[str, Member], earlier: Earlier | None
) -> dict[str, Split]:
    """Assign a split to every slide: all slides of a patient, or of a site, are in one.

    Sites that share a patient are one. A given split counts for all slides of a patient. Slides of
    one patient with different given splits keep these, and the patient's other slides go to train.
    If the cohort was split by the same rule before, its patients keep their splits.

    Args:
        rule: shares of the splits.
        members: slide → what is known of it.
        earlier: the cohort as it was before; None: there is none.
    """
    group = _groups(rule, members)
    fixed = _earlier(rule, group, earlier)
    given: dict[str, set[Split]] = {}
    for name, member in members.items():
        if member.given is not None:
            given.setdefault(group[name], set()).add(member.given)
    for key, parts in given.items():
        fixed[key] = next(iter(parts)) if len(parts) == 1 else "train"
    classes: dict[str, set[int]] = {}
    for name, member in members.items():
        classes.setdefault(group[name], set()).update(member.classes)
    # Only groups without a given split are counted for the shares.
    free = [key for key in classes if key not in given]
    kept = {key: split for key, split in fixed.items() if key not in given}
    splits = rule.assign(free, classes, kept) | {key: fixed[key] for key in given}
    return {name: member.given or splits[group[name]] for name, member in sorted(members.items())}


def earlier_splits(
    store: Store,
    request: IngestRequest,
    tiles: dict[str, list[Row]],
    done: Mapping[str, dict[str, Any]],
) -> Earlier | None:
    """Return the splits of a cohort as it is in the store; None if there is none to read.

    Slides of other content than now are left out, so that a cohort which replaces another one
    takes nothing from slides that only have the same names. Slides that are skipped this time keep
    their splits. Tiles are known by their images, as they may be grouped otherwise now.
    """
    splits: dict[str, Split] = {}
    mixed: dict[str, set[Split]] = {}
    patients: dict[str, str] = {}
    rule = None
    try:
        cohort = store.get_model(cohort_key(request.cohort), CohortRecord)
        rule = cohort.split
        known = _members_before(cohort)
        skipped = {item.slide for item in request.slides} - set(done)
        same = {
            name: part
            for name, part in known.items()
            if name in skipped or _sha256(done, name) == part.sha256
        }
        splits = {name: part.split for name, part in same.items()}
        patients = {name: part.patient for name, part in same.items() if part.patient}
    except (ObjectNotFoundError, DamagedObjectError):
        pass
    try:
        regions = store.get_model(region_set_key(request.cohort), RegionSet)
        before = read_tiles(store, regions.tiles) if regions.tiles else {}
        rule = rule or regions.split
        owner = {sha: part for part in regions.slides for sha in _images(before, part.slide)}
        for slide in tiles:
            parts = [owner[sha] for sha in sorted(_images(tiles, slide) & set(owner))]
            parted = {part.split for part in parts}
            if len(parted) > 1:
                mixed[slide] = parted
                continue
            for part in parts:
                splits[slide] = part.split
                patients |= {slide: part.patient} if part.patient else {}
    except (ObjectNotFoundError, DamagedObjectError):
        pass
    return Earlier(splits, patients, rule, mixed) if rule else None


def skipped_slides(
    store: Store, request: IngestRequest, done: Mapping[str, dict[str, Any]]
) -> dict[str, SkippedSlide]:
    """Return the slides that the cohort had before, and that are skipped now."""
    try:
        known = _members_before(store.get_model(cohort_key(request.cohort), CohortRecord))
    except (ObjectNotFoundError, DamagedObjectError):
        return {}
    names = sorted({item.slide for item in request.slides} - set(done))
    return {name: known[name] for name in names if name in known}


def _members_before(cohort: CohortRecord) -> dict[str, SkippedSlide]:
    members = {
        name: SkippedSlide(
            split=split, sha256=cohort.sha256[name], patient=cohort.patients.get(name)
        )
        for name, split in cohort.splits.items()
        if name in cohort.sha256  # else the record is damaged
    }
    return {**cohort.skipped, **members}


def _sha256(done: Mapping[str, dict[str, Any]], slide: str) -> str | None:
    return done.get(slide, {}).get("sha256")


def _images(tiles: dict[str, list[Row]], slide: str) -> set[str]:
    return {row["image_sha256"] for row in tiles.get(slide, ())} - {None}


def kept_splits(
    splits: Mapping[str, Split], members: Mapping[str, Member], earlier: Earlier | None
) -> int:
    """Count the slides whose drawn split is that which they had before."""
    if earlier is None or not earlier.splits:
        return 0
    drawn = [name for name, member in members.items() if member.given is None]
    return sum(earlier.splits.get(name) == splits[name] for name in drawn)


def changed_splits(splits: Mapping[str, Split], earlier: Earlier | None) -> dict[str, str]:
    """Return how the splits of slides have changed: name → 'train → test'."""
    if earlier is None:
        return {}
    before = {name: (split,) for name, split in earlier.splits.items()} | {
        name: tuple(sorted(parts)) for name, parts in earlier.mixed.items()
    }
    return {
        name: f"{', '.join(before[name])} → {split}"
        for name, split in sorted(splits.items())
        if name in before and before[name] != (split,)
    }


def _groups(rule: SplitFractions, members: Mapping[str, Member]) -> dict[str, str]:
    """Return slide → what is never divided: its patient, or its site with all that share patients.

    A slide of neither stands for itself. Joined sites have the name of the first.
    """
    if rule.by == "patient":
        return {name: member.patient or name for name, member in members.items()}
    joined: DisjointSet[tuple[int, str]] = DisjointSet()
    own: dict[str, tuple[int, str]] = {}
    for name, member in members.items():
        known = [(n, x) for n, x in enumerate((member.site, member.patient)) if x is not None]
        own[name], *others = known or [(2, name)]
        joined.add(own[name])
        for other in others:
            joined.add(other)
            joined.merge(own[name], other)
    names = {item: min(each)[1] for each in joined.subsets() for item in each}
    return {name: names[item] for name, item in own.items()}


def _earlier(
    rule: SplitFractions, group: Mapping[str, str], earlier: Earlier | None
) -> dict[str, Split]:
    """Return the splits that groups had before, if they were assigned by the same rule."""
    if earlier is None or earlier.rule != rule:
        return {}
    present = {folded(key): key for key in group.values()}
    before: dict[str, set[Split]] = {}
    for name, split in earlier.splits.items():
        if name in group:
            before.setdefault(group[name], set()).add(split)
        if rule.by == "patient" and (patient := earlier.patients.get(name)):
            before.setdefault(present.get(folded(patient), patient), set()).add(split)
    return {key: next(iter(parts)) for key, parts in before.items() if len(parts) == 1}


def leaks(members: Mapping[str, Member], splits: Mapping[str, Split]) -> list[str]:
    """Return sentences on patients who are, or may be, in more than one split."""
    cautions = []
    divided = _divided({name: member.patient for name, member in members.items()}, splits)
    if divided:
        cautions.append(
            f"Slides of {len(divided)} patients ({_some(divided)}) are in more than one split, as "
            "their given splits demand: the figures are better than they would be on new patients."
        )
    unknown = [name for name, member in members.items() if member.patient is None]
    group = {name: stem for stem, names in alike(unknown).items() for name in names}
    if suspected := _divided(group, splits):
        cautions.append(
            f"The patients of {len(unknown)} slides are not known, and by their names "
            f"({_some(suspected)}) some slides of one patient may be in more than one split."
        )
    return cautions


def _divided(
    patients: Mapping[str, str | None], splits: Mapping[str, Split]
) -> dict[str, list[str]]:
    """Return the patients in more than one split, and their slides."""
    slides: dict[str, list[str]] = {}
    for name, patient in sorted(patients.items()):
        if patient is not None:
            slides.setdefault(patient, []).append(name)
    return {
        patient: names
        for patient, names in slides.items()
        if len({splits[name] for name in names}) > 1
    }


def _some(divided: Mapping[str, list[str]]) -> str:
    listed = [f"{patient}: {', '.join(names[:3])}" for patient, names in divided.items()]
    return "; ".join(listed[:3]) + ("; …" if len(listed) > 3 else "")


def class_regions(store: Store, name: str, slide: str, classes: int) -> list[int]:
    """Count, for each class, the regions of a slide that show it.

    Args:
        store: holds the slide's table of regions.
        name: name of the region set.
        slide: name of the slide.
        classes: number of classes, background included.
    """
    table = read_table(store, region_table_key(name, slide), ["fractions"])
    rows = table["fractions"].to_pylist()
    return [sum(row[index] > 0 for row in rows) for index in range(classes)]
