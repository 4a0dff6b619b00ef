"""What every object store must do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shared.errors import InputError
from shared.storage import ObjectNotFoundError, Store


def check_store(store: Store, folder: Path) -> None:
    """Try every operation of a store that is empty."""
    store.put("a/one", b"1")
    store.put("a/two.tar", b"22")
    store.put("ab", b"3")
    assert store.get("a/one") == b"1"
    tag = store.put("a/one", b"changed")
    assert (store.get("a/one"), store.stat("a/one").tag) == (b"changed", tag)
    assert (store.exists("a/one"), store.exists("a"), store.exists("a/on")) == (True, False, False)
    assert store.size("a/two.tar") == 2
    with store.open("a/two.tar") as stream:
        assert (stream.read(1), stream.read()) == (b"2", b"2")
    with store.open("a/two.tar", 1) as stream:
        assert stream.read() == b"2"
    assert store.create("a/new", b"first")
    assert not store.create("a/new", b"second")
    assert store.get("a/new") == b"first"
    store.delete("a/new")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: store.create("a/new", bytes([n])), range(8)))
    assert made[store.get("a/new")[0]]
    store.delete("a/new")
    first = store.stat("a/one")
    assert first == store.stat("a/one")
    store.put("a/one", b"CHANGED")
    assert store.stat("a/one").tag != first.tag
    store.put("a/deep/er/x", b"")
    assert [list(store.folders(prefix)) for prefix in ("", "a/", "b/")] == [["a"], ["deep"], []]
    assert list(store.folders("a/", "de")) == ["deep"]
    assert list(store.folders("a/", "x")) == []
    assert sorted(store.entries("a/")) == ["deep/", "one", "two.tar"]
    assert list(store.entries("b/")) == []
    store.delete("a/deep/er/x")
    assert list(store.list()) == ["a/one", "a/two.tar", "ab"]
    assert list(store.list("a/")) == ["a/one", "a/two.tar"]
    assert list(store.list("a")) == ["a/one", "a/two.tar", "ab"]
    assert list(store.list("nothing/")) == []
    assert list(store.stats("a")) == [(key, store.stat(key)) for key in store.list("a")]
    assert list(store.stats("nothing/")) == []
    dates = dict(store.dates("a/"))
    assert set(dates) == {"a/one", "a/two.tar"}
    assert all(abs(datetime.now(UTC) - date) < timedelta(minutes=5) for date in dates.values())
    for missing in (
        store.get, store.size, store.local, lambda key: store.open(key).__enter__(),
        lambda key: store.read_range(key, 0, 1),
    ):  # fmt: skip
        with pytest.raises(ObjectNotFoundError, match="no object 'a/none'"):
            missing("a/none")
    source = folder / "source.bin"
    source.write_bytes(bytes(range(256)) * 5000)
    tag = store.put_file("files/müde 1.bin", source)
    assert store.stat("files/müde 1.bin").tag == tag
    assert store.local("files/müde 1.bin").read_bytes() == source.read_bytes()
    data = source.read_bytes()
    assert store.read_range("files/müde 1.bin", 1000, 300) == data[1000:1300]
    assert store.read_range("files/müde 1.bin", len(data) - 5, 300) == data[-5:]
    store.put("files/müde 1.bin", b"new")
    assert store.local("files/müde 1.bin").read_bytes() == b"new"
    for number in range(8):
        store.put("files/wanted.bin", bytes([number]) * 500_000)
        with ThreadPoolExecutor(8) as pool:
            paths = list(pool.map(store.local, ["files/wanted.bin"] * 8))
        assert {path.read_bytes() for path in paths} == {bytes([number]) * 500_000}
    store.delete("files/wanted.bin")
    with store.writing("b/made.txt") as path:
        assert path.suffix == ".txt"
        path.write_text("made")
    assert store.get("b/made.txt") == b"made"
    _write_half(store)
    assert not store.exists("b/half.txt")
    for bad in ("", "/etc/passwd", "../up", "a/../../b", "a//b", "a\\b", "a/"):
        with pytest.raises(InputError, match="not a store key"):
            store.put(bad, b"")
    store.delete("ab")
    store.delete("ab")
    store.delete_prefix("a/")
    assert list(store.list()) == ["b/made.txt", "files/müde 1.bin"]
    store.put_json("c.json", {"b": 1, "a": [1.5]})
    assert store.get_json("c.json") == {"a": [1.5], "b": 1}


def _write_half(store: Store) -> None:
    with suppress(RuntimeError), store.writing("b/half.txt") as path:
        path.write_text("half")
        raise RuntimeError
