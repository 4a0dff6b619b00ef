"""Pseudonyms: what a dataset calls the slides, patients and regions that it was made from.

A pseudonym is a keyed hash (HMAC-SHA-256) of a name. Every dataset has its own key, which stays in
the store as `datasets/<id>/pseudonyms.key`. So it is known which images come from one slide, but
names cannot be read, and the slides of two datasets cannot be compared.

The key is a hash of the dataset's name and of the records of its region sets. These hold the hashes
of the regions' pixels: nobody without the slides can compute the key, and the same request gives
the same dataset in every store that holds the same regions.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from typing import Literal

from shared.contracts.regions import (
    SourceSlide,
    SourceSlides,
    region_set_key,
    region_table_key,
)
from shared.contracts.synthesize import (
    PSEUDONYM_KEY,
    SLIDES,
    DatasetRecord,
    DatasetRequest,
    Provenance,
    dataset_key,
)
from shared.datasets.slide_sources import slides_of
from shared.imaging.region_sets import load_region_set
from shared.models import read_model
from shared.storage import Store, checked_bytes
from shared.storage.formats import read_table

DIGITS = 16
"""Hexadecimal digits of a pseudonym."""

Kind = Literal["slide", "patient", "region"]


class Pseudonyms:
    """The pseudonyms of one dataset.

    Args:
        key: the dataset's key.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, kind: Kind, name: str) -> str:
        """Return the pseudonym of a name, such as `slide-0123456789abcdef`."""
        digest = hmac.digest(self._key, f"{kind} {name}".encode(), "sha256")
        return f"{kind}-{digest.hex()[:DIGITS]}"

    def hide(self, provenance: Provenance) -> Provenance:
        """Return a provenance with pseudonyms of its slides and regions."""
        return _renamed(provenance, self.of)


def reveal(provenance: Provenance, names: Mapping[str, str]) -> Provenance:
    """Return a provenance with the names of its slides and regions.

    Args:
        provenance: a provenance with pseudonyms; older datasets have names, which stay.
        names: pseudonym → name, by `source_names`.
    """
    return _renamed(provenance, lambda _, name: names.get(name, name))


def _renamed(provenance: Provenance, rename: Callable[[Kind, str], str]) -> Provenance:
    crops = tuple(
        crop.model_copy(
            update={"slide": rename("slide", crop.slide), "region": rename("region", crop.region)}
        )
        for crop in provenance.crops
    )
    return provenance.model_copy(
        update={
            "map_slide": rename("slide", provenance.map_slide),
            "map_region": rename("region", provenance.map_region),
            "crops": crops,
        }
    )


def write_sources(store: Store, request: DatasetRequest) -> None:
    """Write the key of a dataset that is about to be made, and the slides of its regions."""
    store.put(dataset_key(request.dataset, PSEUDONYM_KEY), _derive_key(store, request))
    slides = SourceSlides(slides=_slides_now(store, request))
    store.put_json(dataset_key(request.dataset, SLIDES), slides)


def source_slides(store: Store, record: DatasetRecord) -> tuple[SourceSlide, ...]:
    """Return the slides of the regions of a dataset; today's, if an older version made it.

    Raises:
        ObjectNotFoundError: the store holds the list no longer.
        DamagedObjectError: it is not as it was made.
    """
    if not record.slides:
        return _slides_now(store, record.request)
    key = dataset_key(record.dataset, SLIDES)
    return store.parse(key, checked_bytes(store, key, record.slides), SourceSlides).slides


def _slides_now(store: Store, request: DatasetRequest) -> tuple[SourceSlide, ...]:
    sets = (load_region_set(store, name) for name in _region_sets(store, request))
    return tuple(dict.fromkeys(slide for each in sets for slide in slides_of(store, each)))


def dataset_pseudonyms(store: Store, request: DatasetRequest) -> Pseudonyms:
    """Return the pseudonyms of a dataset; one that was made without a key gets no stored one."""
    key = dataset_key(request.dataset, PSEUDONYM_KEY)
    return Pseudonyms(store.get(key) if store.exists(key) else _derive_key(store, request))


def is_as_made(store: Store, request: DatasetRequest) -> bool:
    """Say whether the region sets of a dataset are those that it was made from.

    Else a region's name may mean other tissue now. Of older versions' datasets it is not known.
    """
    key = dataset_key(request.dataset, PSEUDONYM_KEY)
    return not store.exists(key) or store.get(key) == _derive_key(store, request)


def _derive_key(store: Store, request: DatasetRequest) -> bytes:
    digest = hashlib.sha256(request.dataset.encode())
    for name in _region_sets(store, request):
        digest.update(hashlib.sha256(store.get(region_set_key(name))).digest())
    return digest.hexdigest().encode()


def _region_sets(store: Store, request: DatasetRequest) -> list[str]:
    """Return the names of the region sets of the maps and of the crops, each once."""
    own = read_model(store, request.model_ref).regions
    return list(dict.fromkeys(source.regions or own for source in (request.maps, request.crops)))


def source_names(store: Store, record: DatasetRecord, *, regions: bool = True) -> dict[str, str]:
    """Return pseudonym → name for the slides and patients, and the regions, behind a dataset.

    Args:
        store: the store in which the dataset was made.
        record: the dataset.
        regions: whether regions are included.

    Raises:
        ObjectNotFoundError: the store does not hold the model or a region set any more.
    """
    pseudonyms, named = dataset_pseudonyms(store, record.request), dict[str, str]()
    for source in source_slides(store, record):
        named[pseudonyms.of("slide", source.slide)] = source.slide
        if source.patient is not None:
            named[pseudonyms.of("patient", source.patient)] = source.patient
    for name in _region_sets(store, record.request) if regions else ():
        for part in load_region_set(store, name).slides:
            if part.regions:
                table = read_table(store, region_table_key(name, part.slide), ["key"])
                keys = table["key"].to_pylist()
                named |= {pseudonyms.of("region", key): key for key in keys}
    return named
