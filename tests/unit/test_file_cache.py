"""The cache of fetched files: its limit holds, what is used stays, crashes leave nothing behind."""

from __future__ import annotations

import fcntl
import gc
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from shared.errors import InputError
from shared.storage.cache import PART, FileCache

LIMIT = 100


def content(size: int, fetched: list[int] | None = None) -> Callable[[IO[bytes]], object]:
    def fetch(file: IO[bytes]) -> None:
        if fetched is not None:
            fetched.append(size)
        file.write(b"x" * size)

    return fetch


def sizes(folder: Path) -> dict[str, int]:
    files = (path for path in folder.glob("s/**/*") if path.is_file())
    return {path.name: path.stat().st_size for path in files}


def put(cache: FileCache, name: str, size: int, used: float | None = None) -> Path:
    path = cache.file(f"s/{name}/{name}", size, content(size))
    if used is not None:
        os.utime(cache.folder / "s" / name, (used, used))
    return path


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, LIMIT)
    for number, name in enumerate("abc"):
        put(cache, name, 30, used=number)
    fetched: list[int] = []
    assert cache.file("s/a/a", 30, content(30, fetched)).read_bytes() == b"x" * 30  # used again
    assert not fetched
    put(cache, "d", 40)
    gc.collect()
    assert sizes(tmp_path) == {"a": 30, "c": 30, "d": 40}
    assert not (tmp_path / "s" / "b").exists()


def test_many_files_stay_below_the_limit(tmp_path: Path) -> None:
    for number in range(50):
        put(FileCache(tmp_path, LIMIT), f"f{number}", 7 + number % 30)
        assert sum(sizes(tmp_path).values()) <= LIMIT


def test_a_file_in_use_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, other = FileCache(tmp_path, LIMIT), FileCache(tmp_path, LIMIT)
    used = put(first, "used", 60, used=1)
    put(other, "new", 60)
    assert used.exists()
    assert "more than HTD_CACHE_GB" in caplog.text
    del used
    gc.collect()
    put(other, "next", 60)
    assert sizes(tmp_path) == {"next": 60}


def test_what_a_crash_left_is_removed(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, LIMIT)
    put(cache, "whole", 30)
    (tmp_path / "s" / "whole" / ".part-lost").write_bytes(b"x" * 60)
    (tmp_path / "lock").write_text("")
    put(cache, "new", 60)
    assert sizes(tmp_path) == {"whole": 30, "new": 60}


def test_a_broken_fetch_leaves_nothing(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, LIMIT)
    with pytest.raises(OSError, match="20 of 30 bytes came"):
        cache.file("s/v/name", 30, content(20))
    assert sizes(tmp_path) == {}
    assert cache.file("s/v/name", 30, content(30)).read_bytes() == b"x" * 30


def test_a_file_that_never_fits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"big has 0.0 GB, and HTD_CACHE_GB allows"):
        put(FileCache(tmp_path, LIMIT), "big", LIMIT + 1)


def test_several_who_want_a_file_fetch_it_once(tmp_path: Path) -> None:
    fetched: list[int] = []
    inside, go = threading.Event(), threading.Event()

    def slow(file: IO[bytes]) -> None:
        inside.set()
        assert go.wait(10)
        content(30, fetched)(file)

    found: list[Path] = []

    def want() -> None:
        found.append(FileCache(tmp_path, LIMIT).file("s/v/name", 30, slow))

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert inside.wait(10)
    (lock,) = (tmp_path / "s" / "v").iterdir()
    with lock.open("rb") as part, pytest.raises(BlockingIOError):
        fcntl.flock(part, fcntl.LOCK_SH | fcntl.LOCK_NB)
    go.set()
    for thread in threads:
        thread.join()
    assert fetched == [30]
    assert [path.read_bytes() for path in found] == [b"x" * 30] * 4


def test_what_others_left_in_the_folder_is_not_taken(tmp_path: Path) -> None:
    folder, victim = tmp_path / "cache", tmp_path / "victim"
    victim.write_bytes(b"precious")
    cache = FileCache(folder, LIMIT)
    put(cache, "a", 10)
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "s/b").mkdir()
    (folder / "s/b/b").write_bytes(b"POISON")  # of another size
    assert put(cache, "b", 10).read_bytes() == b"x" * 10
    (folder / "s/c").mkdir()
    part = folder / "s/c" / f"{PART}{hashlib.sha256(b'c').hexdigest()[:16]}"
    part.symlink_to(victim)
    (folder / "s/c/c").symlink_to(victim)
    assert put(cache, "c", 8).read_bytes() == b"x" * 8
    assert victim.read_bytes() == b"precious"
    (tmp_path / "other").mkdir()
    (folder / "s/d").symlink_to(tmp_path / "other")
    assert put(cache, "d", 8).read_bytes() == b"x" * 8
    assert not list((tmp_path / "other").iterdir())
    folder.chmod(0o777)
    put(cache, "a", 10)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:
        put(FileCache(tmp_path / "own", LIMIT), "a", 10)
        for place in ("s/a/a", "s/a"):
            os.chown(tmp_path / "own" / place, 12345, -1)
            with pytest.raises(InputError, match="is not this user's"):
                put(FileCache(tmp_path / "own", LIMIT), "a", 10)
            os.chown(tmp_path / "own" / place, 0, -1)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(InputError, match="set HTD_CACHE_DIR"):
        put(FileCache(link, LIMIT), "a", 10)
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(InputError, match="set HTD_CACHE_DIR"):
        put(FileCache(tmp_path, LIMIT), "a", 10)
