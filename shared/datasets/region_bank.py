"""Banks of regions with the labels of a model, which give label maps and crops."""

from __future__ import annotations

from collections import OrderedDict
from functools import cached_property

import numpy as np
import pyarrow as pa

from shared.arrays import Float64, UInt8
from shared.contracts.base import Split
from shared.contracts.models import ModelRecord
from shared.contracts.regions import RegionSet
from shared.contracts.synthesize import DatasetRequest
from shared.datasets.samples import check_region_set
from shared.errors import InputError
from shared.imaging.region_index import has_region_index
from shared.imaging.region_sets import (
    Region,
    RegionIndex,
    load_region_set,
    region_tables,
    shares_of,
)
from shared.storage import Store, sha256

KEPT = 4
"""Banks that a process keeps, because all shards of a dataset read the same."""

_kept: OrderedDict[tuple[object, ...], RegionBank] = OrderedDict()


class RegionBank:
    """The tables of some splits of a region set, and the regions' pixels on demand.

    Attributes:
        name: name of the region set.
        keys: key of each region, slide by slide.
        slides: str (n,), slide of each region.
        shares: float64 (n, classes of the model), share of each class in each region.

    Raises:
        InputError: the set does not fit the model (classes, size, resolution), or has
            no region in the splits.
    """

    def __init__(
        self, store: Store, record: RegionSet, splits: tuple[Split, ...], model: ModelRecord
    ) -> None:
        self.name = record.name
        self._store, self._record, self._splits = store, record, splits
        self._table = check_region_set(record, splits, model)
        rows = pa.concat_tables(list(region_tables(store, record, splits)))
        self.keys: list[str] = rows["key"].to_pylist()
        self.slides = np.array(rows["slide"].to_pylist())
        self.shares: Float64 = np.zeros((len(self.keys), len(model.classes)))
        own = shares_of(rows)  # by the set's own labels
        for index in range(own.shape[1]):
            self.shares[:, self._table[index]] += own[:, index]

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Key of each region → its number."""
        return {key: number for number, key in enumerate(self.keys)}

    @cached_property
    def pixels(self) -> RegionIndex:
        """The regions' images and label maps, with the set's own labels."""
        return RegionIndex(self._store, self._record, *self._splits)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {key: position for position, key in enumerate(self.pixels.keys)}

    def read(self, number: int) -> Region:
        """Read a region by its number, with the model's labels.

        Raises:
            InputError: the shard lacks the region that the table names.
        """
        region = self.pixels[self._position(number)]
        return Region(region.key, region.slide, region.image, self._table[region.labels])

    def read_labels(self, number: int) -> UInt8:
        """Read the label map of a region alone, uint8 (size, size); raises as `read` does."""
        return self._table[self.pixels.labels(self._position(number))]

    def _position(self, number: int) -> int:
        key = self.keys[number]
        if key not in self._positions:
            raise InputError(
                f"region set {self.name!r}: the shard of {self.slides[number]} lacks {key}, which "
                "its table names: make the region set again"
            )
        return self._positions[key]


def open_banks(
    store: Store,
    request: DatasetRequest,
    model: ModelRecord,
    records: tuple[RegionSet, RegionSet] | None = None,
) -> tuple[RegionBank, RegionBank]:
    """Open the banks of label maps and of crops, which are one bank if the sources are equal.

    Args:
        store: store that holds the region sets.
        request: request with the names of the sets and the splits.
        model: model whose labels are used, and whose own region set is the default.
        records: records of the sets of maps and of crops, if they are loaded already.

    Raises:
        InputError: a region set is missing, or does not fit the model (see `RegionBank`).
    """
    sources = (request.maps, request.crops)
    names = [source.regions or model.regions for source in sources]
    map_set, crop_set = records or (load_region_set(store, name) for name in names)
    maps = _bank(store, map_set, request.maps.splits, model)
    if names[0] == names[1] and request.maps.splits == request.crops.splits:
        return maps, maps
    return maps, _bank(store, crop_set, request.crops.splits, model)


def _bank(
    store: Store, record: RegionSet, splits: tuple[Split, ...], model: ModelRecord
) -> RegionBank:
    """Open a bank, or return the process's own one of the same shards, splits and classes."""
    at = (store.url, sha256(record.model_dump_json().encode()), splits, model.model_dump_json())
    if at not in _kept:
        bank = RegionBank(store, record, splits, model)
        if not has_region_index(store, record):
            return bank
        _kept[at] = bank
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
    return _kept[at]
