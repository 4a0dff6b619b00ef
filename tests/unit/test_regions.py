"""The region rule, by hand-computed examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shared.contracts.base import Split, SplitFractions
from shared.contracts.regions import RegionRule, region_tar_key
from shared.errors import InputError
from shared.imaging.codec import decode_png
from shared.imaging.region_index import write_region_index
from shared.imaging.region_sets import Region, RegionIndex, pack_regions, region_tables
from shared.imaging.windows import choose_windows, class_entropy
from shared.storage import DamagedObjectError, DirectoryStore, StoreView
from shared.storage.formats import unpack_tar
from tests.region_sets import make_region_set


def halves(share: float, background: float = 0.0) -> np.ndarray:  # type: ignore[type-arg]
    """A 100 × 100 map: background rows, then class 1 on `share` of the columns, class 2 else."""
    labels = np.full((100, 100), 2, np.uint8)
    labels[:, : round(share * 100)] = 1
    labels[: round(background * 100)] = 0
    return labels


@pytest.mark.parametrize(
    ("share", "kept"), [(0.1, False), (0.2, True), (0.5, True), (0.8, True), (0.81, False)]
)
def test_two_classes_must_lie_between_the_bounds(share: float, kept: bool) -> None:
    assert bool(choose_windows(halves(share), 3, 100, 50, RegionRule())) is kept


def test_shares_are_of_the_tissue_unless_background_counts() -> None:
    labels = halves(0.1, background=0.5)
    assert not choose_windows(labels, 3, 100, 50, RegionRule())
    assert choose_windows(labels, 3, 100, 50, RegionRule(count_background=True))
    sparse = halves(0.5, background=0.9)
    assert not choose_windows(sparse, 3, 100, 50, RegionRule())
    assert choose_windows(sparse, 3, 100, 50, RegionRule(min_tissue=0.05))


def test_the_cap_keeps_the_most_diverse() -> None:
    labels = np.concatenate([halves(0.2), halves(0.5), halves(0.3)], 1)
    windows = choose_windows(labels, 3, 100, 100, RegionRule(max_per_slide=1))
    assert [(window.x, window.y) for window in windows] == [(100, 0)]
    assert windows[0].entropy == pytest.approx(1.0)
    assert windows[0].fractions == pytest.approx((0, 0.5, 0.5))


def test_windows_larger_than_the_map_do_not_fit() -> None:
    assert choose_windows(halves(0.5), 3, 101, 50, RegionRule()) == []


def test_entropy_of_equal_shares_is_the_logarithm_of_their_number() -> None:
    assert class_entropy(np.full(8, 1 / 8)) == pytest.approx(3.0)
    assert class_entropy(np.array([1.0, 0.0])) == 0


def test_shards_are_lossless_and_reproducible() -> None:
    rng = np.random.default_rng(0)
    region = Region(
        "s_0_0", "s", rng.integers(0, 256, (32, 32, 3)).astype(np.uint8),
        rng.integers(0, 200, (32, 32)).astype(np.uint8),
    )  # fmt: skip
    data = pack_regions([region])
    assert data == pack_regions([region])
    files = dict(unpack_tar(data))
    assert np.array_equal(decode_png(files["s_0_0.png"]), region.image)
    assert np.array_equal(decode_png(files["s_0_0.mask.png"]), region.labels)


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("kept", [1024, 700, -2048, None])
def test_a_damaged_shard_is_told_by_its_name(
    kept: int | None, indexed: bool, tmp_path: Path
) -> None:
    store = DirectoryStore(tmp_path)
    record = make_region_set(store, regions=2, splits={"slide-a": "train"})
    if indexed:
        write_region_index(store, record)
    assert len(RegionIndex(store, record, "train")) == 2
    key = region_tar_key("toy", "slide-a")
    shard = bytearray(store.get(key))
    shard[600] ^= kept is None
    store.put(key, bytes(shard[:kept]))
    with pytest.raises(DamagedObjectError, match=rf"'{key}' of .* is damaged .*htd ingest"):
        RegionIndex(store, record, "train").labels(0)


class CountingStore(StoreView):
    """A store that counts the objects that are fetched."""

    fetched = 0

    def get(self, key: str) -> bytes:
        self.fetched += 1
        return super().get(key)

    def local(self, key: str) -> Path:
        self.fetched += 1
        return super().local(key)


def test_an_index_stands_for_the_tables_and_shards_of_all_slides(tmp_path: Path) -> None:
    fetched = []
    for count in (2, 9):
        store = CountingStore(DirectoryStore(tmp_path / str(count)))
        splits: dict[str, Split] = {f"s{i}": "val" if i == 1 else "train" for i in range(count)}
        record = make_region_set(store, regions=2, splits=splits)
        known = RegionIndex(store, record, "train")
        rows = list(region_tables(store, record, ("train",)))
        assert len(rows) == count - 1
        write_region_index(store, record)
        store.fetched = 0
        index = RegionIndex(store, record, "train")
        (table,) = region_tables(store, record, ("train",))
        assert index.keys == known.keys == table["key"].to_pylist()
        assert table["fractions"].to_pylist() == [
            f for r in rows for f in r["fractions"].to_pylist()
        ]
        assert np.array_equal(index[1].image, known[1].image)
        assert np.array_equal(index[1].labels, known[1].labels)
        fetched.append(store.fetched)
    assert fetched == [2, 2]  # the index, and the shard of the region

    store.put(region_tar_key("toy", "s2"), b"short")
    with pytest.raises(DamagedObjectError, match=r"regions/toy/s2\.tar"):
        RegionIndex(store, record, "train")[2]
    other = make_region_set(store, regions=3, splits=splits)  # whose index is not written yet
    assert len(RegionIndex(store, other, "val")) == 3


def test_splits_hold_back_whole_slides_and_do_not_depend_on_order() -> None:
    slides = [f"slide-{i}" for i in range(10)]
    splits = SplitFractions(val=0.1, test=0.3, seed=1).assign(slides)
    assert splits == SplitFractions(val=0.1, test=0.3, seed=1).assign(slides[::-1])
    kinds = list(splits.values())
    assert (kinds.count("test"), kinds.count("val"), kinds.count("train")) == (3, 1, 6)
    assert SplitFractions(test=0.5).assign(["only"]) == {"only": "train"}
    assert sorted(SplitFractions(test=0.1).assign(["a", "b"]).values()) == ["test", "train"]


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n", b"x" * 99])
def test_a_picture_that_is_none_is_told(data: bytes) -> None:
    with pytest.raises(InputError, match="an image in the store is broken"):
        decode_png(data)
