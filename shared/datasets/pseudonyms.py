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
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from shared.contracts.regions import RegionSet, region_set_key, region_table_key
from shared.contracts.synthesize import (
    PSEUDONYM_KEY,
    DatasetRecord,
    DatasetRequest,
    Provenance,
    dataset_key,
)
from shared.imaging.region_sets import load_region_set
from shared.models import read_model
from shared.storage import Store
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


def write_key(store: Store, request: DatasetRequest) -> None:
    """Write the key of a dataset that is about to be made."""
    store.put(dataset_key(request.dataset, PSEUDONYM_KEY), _derive_key(store, request))


def dataset_pseudonyms(store: Store, request: DatasetRequest) -> Pseudonyms:
    """Return the pseudonyms of a dataset; one that was made without a key gets no stored one."""
    key = dataset_key(request.dataset, PSEUDONYM_KEY)
    return Pseudonyms(store.get(key) if store.exists(key) else _derive_key(store, request))


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
    pseudonyms = dataset_pseudonyms(store, record.request)
    return {
        pseudonyms.of(kind, name): name
        for region_set in _region_sets(store, record.request)
        for kind, name in _names(store, load_region_set(store, region_set), regions)
    }


def _names(store: Store, record: RegionSet, regions: bool) -> Iterator[tuple[Kind, str]]:
    for part in record.slides:
        yield "slide", part.slide
        if part.patient is not None:
            yield "patient", part.patient
        if regions and part.regions:
            table = read_table(store, region_table_key(record.name, part.slide), ["key"])
            for key in table["key"].to_pylist():
                yield "region", key
