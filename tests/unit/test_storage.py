"""The object store on a directory."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pyarrow as pa
import pytest
from pydantic import SecretStr

from shared.contracts.regions import RegionSet, region_set_key, region_table_key
from shared.errors import InputError
from shared.settings import Settings
from shared.storage import (
    DamagedObjectError,
    DirectoryStore,
    ObjectNotFoundError,
    S3Store,
    checked_file,
    object_hash,
    open_store,
)
from shared.storage.formats import pack_tar, read_table, table_bytes, unpack_tar
from shared.storage.parts import part_upload
from tests.store_contract import check_store


def test_a_directory_is_an_object_store(tmp_path: Path) -> None:
    check_store(DirectoryStore(tmp_path / "store"), tmp_path)


def test_objects_have_the_mode_of_other_new_files(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    store.put("a", b"x")
    assert store.create("b", b"x")
    (tmp_path / "plain").touch()
    usual = (tmp_path / "plain").stat().st_mode
    assert {store.local(key).stat().st_mode for key in "ab"} == {usual}


def test_interrupted_puts_leave_nothing(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    with pytest.raises(FileNotFoundError):
        store.put_file("a/b", tmp_path / "missing")
    assert list(store.list()) == []
    assert list((tmp_path / "a").iterdir()) == []


def test_an_object_that_goes_away_while_it_is_looked_up_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(tmp_path)
    monkeypatch.setattr(Path, "is_file", lambda _: True)  # as if it was deleted after that
    reads: tuple[Callable[[str], object], ...] = (
        store.get, store.stat, store.size, store.get_json,
        lambda key: checked_file(store, key, "0" * 64), partial(object_hash, store),
    )  # fmt: skip
    for read in reads:
        with pytest.raises(ObjectNotFoundError):
            read("a")
    with pytest.raises(ObjectNotFoundError), store.open("a"):
        pass


@pytest.mark.parametrize("local", [True, False])
def test_a_damaged_object_is_named_with_the_command_that_makes_it(
    tmp_path: Path, local: bool
) -> None:
    store = DirectoryStore(tmp_path)
    key, remedy = region_table_key("r", "a"), "run 'htd ingest' or 'htd tiles' with --cohort r"
    whole = table_bytes(pa.table({"x": np.arange(1000)}))
    store.put(key, whole)
    assert read_table(store, key, ["x"], local=local).num_rows == 1000
    with pytest.raises(DamagedObjectError, match=r"No match for .*y"):
        read_table(store, key, ["x", "y"], local=local)
    for damaged in (b"", whole[:500], whole[:-40] + whole[-20:], b"\0" * 99):
        store.put(key, damaged)
        with pytest.raises(DamagedObjectError, match=f"'{key}' of .* is damaged .*{remedy}"):
            read_table(store, key, ["x"], local=local)
    store.put(region_set_key("r"), b'{"regions": "r",')
    with pytest.raises(DamagedObjectError, match=f"'{region_set_key('r')}' of .*{remedy}"):
        store.get_model(region_set_key("r"), RegionSet)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/x", "not a store"),
        ("s3://", "not a store"),
        ("s3://bucket", "HTD_S3_ENDPOINT"),
    ],
)
def test_malformed_addresses_are_refused(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_store(url, Settings())


def test_an_s3_store_has_no_default_keys() -> None:
    with pytest.raises(InputError, match="HTD_S3_ACCESS_KEY"):
        open_store("s3://bucket", Settings(s3_endpoint="http://127.0.0.1:1"))


def test_without_keys_an_s3_store_takes_the_role_of_its_workload(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = {
        "AccessKeyId": "ROLE", "SecretAccessKey": "secret", "Token": "session",
        "Expiration": "2999-01-01T00:00:00Z",
    }  # fmt: skip

    class Role(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(keys).encode())

    with HTTPServer(("127.0.0.1", 0), Role) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}/role"
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", place)
        store = S3Store("bucket", "", Settings(s3_endpoint="http://minio:9000"))
        url = store.presign("a", 60) or ""
    assert "X-Amz-Credential=ROLE%2F" in url
    assert "X-Amz-Security-Token=session" in url


def test_presigned_urls_name_the_server_as_clients_reach_it() -> None:
    config = Settings(
        s3_endpoint="http://minio:9000",
        s3_public_endpoint="https://data.example.org",
        s3_access_key=SecretStr("key"),
        s3_secret_key=SecretStr("secret"),
    )
    store = S3Store("bucket", "some/prefix", config)
    url = urlparse(store.presign("a/b.tar", 60) or "")
    assert (url.netloc, url.path) == ("data.example.org", "/bucket/some/prefix/a/b.tar")
    parts = part_upload(store, "a/b.tar")
    url = parts.url("upload", 3, 1000, 60) or ""
    assert "partNumber=3" in url
    assert "X-Amz-SignedHeaders=content-length%3Bhost" in url


def test_what_a_killed_writer_left_is_swept_once_it_is_old(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.put("a/x", b"whole")
    old, new = tmp_path / "a" / ".part-old", tmp_path / "a" / ".part-new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert store.remove_leftovers(datetime.now(UTC) - timedelta(hours=1)) == 1
    assert (old.exists(), new.exists(), store.get("a/x")) == (False, True, b"whole")


def test_a_directory_says_how_much_room_it_has(tmp_path: Path) -> None:
    assert 0 < (DirectoryStore(tmp_path / "not" / "yet").free() or 0) < 2**60


def test_long_names_fit_into_a_shard() -> None:
    names = ["s" * 128 + "_" + "t" * 128 + "_0_0.png", "müde/Probe.png", "a.png"]
    members = [(name, name.encode()) for name in names]
    assert list(unpack_tar(pack_tar(members))) == members
