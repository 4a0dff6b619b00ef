"""Hashes of files are remembered until the file changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shared.settings import settings
from shared.storage import content_hash, content_hash_of_files, hashing, sha256


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    config = settings().model_copy(update={"cache_dir": folder})
    monkeypatch.setattr(hashing, "settings", lambda: config)
    monkeypatch.setattr(hashing, "_SETTLED_NS", 0)
    return folder


def reads_of(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    reads: list[Path] = []
    inner = hashing.sha256_file

    def counted(path: Path) -> str:
        reads.append(path)
        return inner(path)

    monkeypatch.setattr(hashing, "sha256_file", counted)
    return reads


def test_an_unchanged_file_is_read_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = reads_of(monkeypatch)
    file = tmp_path / "slide.svs"
    file.write_bytes(b"first")
    assert content_hash(file) == content_hash(file) == sha256(b"first")
    assert len(reads) == 1


def test_a_change_of_the_same_size_and_time_is_seen(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "slide.svs"
    file.write_bytes(b"first")
    before = file.stat()
    assert content_hash(file) == sha256(b"first")
    file.write_bytes(b"other")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert content_hash(file) == sha256(b"other")


def test_a_file_that_has_just_changed_is_not_remembered(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "_SETTLED_NS", 3_600_000_000_000)
    reads = reads_of(monkeypatch)
    file = tmp_path / "slide.svs"
    file.write_bytes(b"first")
    content_hash(file)
    content_hash(file)
    assert len(reads) == 2


def test_a_cache_that_cannot_be_written_costs_only_time(cache: Path, tmp_path: Path) -> None:
    cache.write_text("a file where the folder should be")
    file = tmp_path / "slide.svs"
    file.write_bytes(b"first")
    assert content_hash(file) == sha256(b"first")


def test_names_count_as_content_of_several_files(cache: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    whole = content_hash_of_files([("a", one), ("b", two)])
    assert whole == content_hash_of_files([("b", two), ("a", one)])
    assert whole != content_hash_of_files([("b", one), ("a", two)])
