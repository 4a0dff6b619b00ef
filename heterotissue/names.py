"""The named things of a store: list them, remove them, and find a free version for a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import count

from heterotissue.cohort_tables import SPLITS, shown_mpp
from heterotissue.job_list import state_of
from heterotissue.sources.records import some
from shared.contracts.base import Split
from shared.contracts.cluster import ClusterRecord, cluster_key
from shared.contracts.embed import FeatureRecord, feature_record_key
from shared.contracts.evaluate import Report, report_key
from shared.contracts.explaining import near_names
from shared.contracts.field import FieldRecord, field_key, work_key
from shared.contracts.ingest import CohortRecord, SlideRecord, cohort_key, label_map_key, slide_key
from shared.contracts.jobs import WITHOUT_RESULT
from shared.contracts.models import ModelRecord, ModelRef
from shared.contracts.regions import RegionSet, region_set_key
from shared.contracts.synthesize import DatasetRecord, dataset_key
from shared.contracts.tiles import tiles_key
from shared.contracts.train import TrainRequest
from shared.errors import InputError, quoted
from shared.jobs import Ledger, names
from shared.models import versions
from shared.storage import DamagedObjectError, ObjectNotFoundError, Store


@dataclass(frozen=True)
class Kind:
    """One kind of named things.

    Attributes:
        products: the first part of the names that its jobs claim; empty: they claim none.
        record: name → key of its record.
        about: store and name → what its record says, in a few words.
        prefixes: store and name → prefixes of all its objects.
    """

    products: str
    record: Callable[[str], str]
    about: Callable[[Store, str], str]
    prefixes: Callable[[Store, str], list[str]]


def _about_slide(store: Store, name: str) -> str:
    record = store.get_model(slide_key(name), SlideRecord)
    mpp = shown_mpp((record.mpp, record.mpp_y or record.mpp))
    return f"{record.width}×{record.height} px at {mpp} µm/px, {record.vendor}"


def _about_cohort(store: Store, name: str) -> str:
    tiles = _tile_set(store, name)
    if tiles:
        splits = Counter(part.split for part in tiles.slides)
        return f"tiles of {_splits(splits)}; {', '.join(tiles.classes.names[1:])}"
    record = _read_cohort(store, name)
    classes = ", ".join(record.classes.names[1:]) if record.classes else "no labels"
    return f"{_splits(Counter(record.splits.values()))}; {classes}"


def _splits(slides: Counter[Split]) -> str:
    return f"{slides.total()} slides ({', '.join(f'{slides[split]} {split}' for split in SPLITS)})"


def _tile_set(store: Store, name: str) -> RegionSet | None:
    """Return the region set of a cohort of tiles alone; None: it has slides, or is not made."""
    key = region_set_key(name)
    if store.exists(cohort_key(name)) or not store.exists(key):
        return None
    regions = store.get_model(key, RegionSet)
    return regions if regions.tiles else None


def _about_regions(store: Store, name: str) -> str:
    record = store.get_model(region_set_key(name), RegionSet)
    total = sum(part.regions for part in record.slides)
    return f"{total} regions of {record.rule.size} px at {record.rule.mpp:g} µm/px; {record.labels}"


def _about_clustering(store: Store, name: str) -> str:
    record = store.get_model(cluster_key(name, "run.json"), ClusterRecord)
    return f"{record.k} tissue types of cohort {record.cohort}, by {record.encoder}"


def _about_features(store: Store, name: str) -> str:
    record = store.get_model(feature_record_key(*name.split("/")), FeatureRecord)
    return (
        f"{sum(record.slides.values())} patches of {len(record.slides)} slides, {record.dim} wide"
    )


def _about_model(store: Store, name: str) -> str:
    record = store.get_model(ModelRef.parse(name).key, ModelRecord)
    start = f", from {record.warm_start}" if record.warm_start else ""
    return f"{record.size} px at {record.mpp:g} µm/px, trained on {record.regions}{start}"


def _about_dataset(store: Store, name: str) -> str:
    record = store.get_model(dataset_key(name, "dataset.json"), DatasetRecord)
    return f"{record.images} images of {record.size} px, by {record.model}"


def _about_field(store: Store, name: str) -> str:
    record = store.get_model(field_key(name, "field.json"), FieldRecord)
    return f"{record.width}×{record.height} px at {record.mpp:g} µm/px, by {record.model}"


def _about_report(store: Store, name: str) -> str:
    record = store.get_model(report_key(name, "report.json"), Report)
    return f"dataset {record.dataset}, model {record.model}"


def _of_slide(store: Store, name: str) -> list[str]:
    named = (cohort for cohort in _listed(store, "cohorts") if store.exists(cohort_key(cohort)))
    cohorts = (_read_cohort(store, cohort) for cohort in named)
    users = [record.cohort for record in cohorts if record.name_of(name) is not None]
    if users:
        raise InputError(f"slide {name!r} belongs to cohort {', '.join(users)}: remove that first")
    source = store.get_model(slide_key(name), SlideRecord).source
    others = (other for other in store.folders("slides/") if other != name)
    records = (slide_key(other) for other in others)
    shared = any(
        store.get_model(key, SlideRecord).source == source for key in records if store.exists(key)
    )
    copied = source.startswith("sources/") and not shared
    return [slide_key(name, ""), *([source.rpartition("/")[0] + "/"] if copied else [])]


def _read_cohort(store: Store, name: str) -> CohortRecord:
    return store.get_model(cohort_key(name), CohortRecord)


def _of_cohort(store: Store, name: str) -> list[str]:
    maps = []
    if store.exists(cohort_key(name)):
        record = _read_cohort(store, name)
        maps = [label_map_key(record.folder(slide), name) for slide in record.splits]
    regions = [] if _of_clusters(store, name) else [f"regions/{name}/"]
    return [cohort_key(name), tiles_key(name), f"patches/{name}/", *regions, *maps]


def _of_clusters(store: Store, name: str) -> bool:
    """Say whether a region set is of a clustering, which may have the name of a cohort."""
    key = region_set_key(name)
    return store.exists(key) and store.get_model(key, RegionSet).labels.startswith("clusters/")


KINDS: dict[str, Kind] = {
    "slides": Kind("", slide_key, _about_slide, _of_slide),
    "cohorts": Kind("cohorts", cohort_key, _about_cohort, _of_cohort),
    "regions": Kind(
        "regions", region_set_key, _about_regions, lambda _, name: [f"regions/{name}/"]
    ),
    "clusterings": Kind(
        "clusters",
        lambda name: cluster_key(name, "run.json"),
        _about_clustering,
        lambda _, name: [cluster_key(name, ""), f"regions/{name}/"],
    ),
    "features": Kind(
        "features",
        lambda name: f"features/{name}/features.json",
        _about_features,
        lambda _, name: [f"features/{name}/"],
    ),
    "models": Kind(
        "models",
        lambda name: ModelRef.parse(name).key,
        _about_model,
        lambda _, name: [ModelRef.parse(name).prefix],
    ),
    "datasets": Kind(
        "datasets",
        lambda name: dataset_key(name, "dataset.json"),
        _about_dataset,
        lambda _, name: [dataset_key(name, "")],
    ),
    "fields": Kind(
        "fields",
        lambda name: field_key(name, "field.json"),
        _about_field,
        lambda _, name: [field_key(name, ""), work_key(name, "")],
    ),
    "reports": Kind(
        "reports",
        lambda name: report_key(name, "report.json"),
        _about_report,
        lambda _, name: [report_key(name, "")],
    ),
}
"""Kind of named things → where they lie and what is said of them."""


@dataclass(frozen=True)
class Entry:
    """One named thing.

    Attributes:
        made: UTC time of its record; None while it has none.
        state: state of its job, as `htd jobs list` has it; 'made' if no job is known.
        job: the job that it belongs to; empty if no job is known.
        about: what its record says, in a few words; or why that cannot be read.
    """

    name: str
    made: datetime | None
    state: str
    job: str
    about: str


def entries(store: Store, kind: str) -> Iterator[Entry]:
    """Yield the things of one of `KINDS` by name, also those that are still being made."""
    known = KINDS[kind]
    ledger = Ledger(store)
    for name in _listed(store, kind):
        key = known.record(name)
        job = names.owner(store, f"{known.products}/{name}") if known.products else None
        status = ledger.find(job) if job else None
        about = ""
        try:
            if kind == "cohorts" and _tile_set(store, name):
                key = region_set_key(name)
            about = known.about(store, name)
        except ObjectNotFoundError:
            pass  # it is still being made, or its job failed
        except DamagedObjectError as error:
            about = str(error)
        except ValueError:
            about = f"{key} cannot be read: another version of this program wrote it"
        made = dict(store.dates(key)).get(key)
        state = state_of(store, status) if status else "made"
        yield Entry(name, made, state, job or "", about)


def full_name(store: Store, kind: str, name: str) -> str:
    """Return a thing's name as `entries` has it.

    A model's name means its only version, and that of a slide its only content.

    Raises:
        InputError: there is no such thing, or there are several versions or contents.
    """
    listed = _listed(store, kind)
    if name in listed:
        return name
    endings = {"models": "/.+", "slides": r"-[0-9a-f]{12}"}
    own = [
        x for x in listed if kind in endings and re.fullmatch(re.escape(name) + endings[kind], x)
    ]
    if len(own) == 1:
        return own[0]
    if own:
        what = "versions" if kind == "models" else "contents"
        raise InputError(
            f"{kind[:-1]} {quoted(name)} has the {what} {', '.join(own)}: name one of them"
        )
    models = {each.partition("/")[0] for each in listed}
    known = listed if "/" in name or kind != "models" else [*models, *listed]
    if near := near_names(name, known):
        hint = f": did you mean {' or '.join(near)}?"
    else:
        hint = f": there are {some(listed)}" if listed else ", which has none"
    raise InputError(f"there is no {quoted(name)} among the {kind} of {store.url}{hint}")


def remove(store: Store, kind: str, name: str) -> int:
    """Delete a named thing and free its name; delete its job too, if that has made nothing else.

    Returns:
        The number of objects deleted, without those of the job.

    Raises:
        InputError: there is no such thing, it is being made, or another thing needs it.
    """
    known, ledger = KINDS[kind], Ledger(store)
    name = full_name(store, kind, name)
    product = f"{known.products}/{name}"
    job = names.owner(store, product) if known.products else None
    if job and ledger.is_open(job):
        raise InputError(f"{product} is being made: 'htd jobs cancel {job}' stops it")
    keys = _keys(store, known, name)
    for key in keys:
        store.delete(key)
    if job is not None:
        names.release(store, product)
        left = names.names_of(store, job)
        if not any(_holds(store, other) for other in left):
            ledger.delete(job)
            for other in left:
                names.release(store, other)
    return len(keys)


def _keys(store: Store, kind: Kind, name: str) -> list[str]:
    return [key for prefix in kind.prefixes(store, name) for key in store.list(prefix)]


def _holds(store: Store, product: str) -> bool:
    """Say whether a thing that people know by its name is in the store."""
    products, _, name = product.partition("/")
    kinds = (kind for kind in KINDS.values() if kind.products == products)
    return any(_keys(store, kind, name) for kind in kinds)


def with_free_version(store: Store, request: TrainRequest) -> TrainRequest:
    """Give a training the first version that is free, or that the same training has taken."""
    ledger = Ledger(store)
    for number in count(1):
        version = {"version": str(number), "run": f"{request.model}-{number}"}
        wanted = request.model_copy(update=version)
        job = names.owner(store, f"models/{wanted.model_ref}")
        if not job:
            if not store.exists(wanted.model_ref.key):
                return wanted
            continue
        status = ledger.find(job)
        if job == ledger.identify(wanted) or (status and status.state in WITHOUT_RESULT):
            return wanted
    raise AssertionError("unreachable: numbers do not end")


def _listed(store: Store, kind: str) -> list[str]:
    """Return the names of all things of a kind, made or claimed, sorted."""
    known = KINDS[kind]
    prefix = known.record("?").partition("?")[0]
    if kind == "models":
        found = {f"{name}/{v}" for name in store.folders(prefix) for v in versions(store, name)}
    elif kind == "cohorts":
        keys = store.list(prefix)
        found = {key.removeprefix(prefix).removesuffix(".json") for key in keys}
    elif kind == "features":
        folders = (
            f"{a}/{b}" for a in store.folders(prefix) for b in store.folders(f"{prefix}{a}/")
        )
        found = {name for name in folders if store.exists(known.record(name))}
    else:
        found = {name for name in store.folders(prefix) if store.exists(known.record(name))}
    if known.products:
        claims = f"names/{known.products}/"
        keys = store.list(claims)
        found |= {key.removeprefix(claims).removesuffix(".json") for key in keys}
    return sorted(found)
