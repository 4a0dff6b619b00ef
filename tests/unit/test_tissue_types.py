"""Tissue types: their merges, and the file that names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.contracts.cluster import TissueType, cluster_key, default_types, write_types
from shared.errors import InputError
from shared.storage import DirectoryStore
from shared.tissue_types import classes_of, read_types


def test_merges_follow_chains_and_equal_names() -> None:
    def kind(name: str, merge: int | None = None) -> TissueType:
        return TissueType(name=name, color=(1, 2, 3), merge=merge)

    types = {1: kind("a"), 2: kind("b", 3), 3: kind("c", 1), 4: kind("d"), 5: kind("a")}
    classes, table = classes_of(types)
    assert classes.names == ["background", "a", "d"]
    assert table[:6].tolist() == [0, 1, 1, 1, 2, 1]
    with pytest.raises(InputError, match="in a circle"):
        classes_of({1: kind("a", 2), 2: kind("b", 1)})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (b"1: {name: a", "not valid YAML"),
        (b"", "not nothing. Correct the file, or delete it: 'htd cluster' writes it again"),
        (b"1: {name: a, color: [0, 0, 0]}", "must list the types 1 to 2"),
        (b"1: {name: a, color: [0, 0, 0], merge: 9}\n2: {name: b, color: [0, 0, 0]}", "into 9"),
    ],
)
def test_a_bad_types_file_is_named(tmp_path: Path, edit: bytes, message: str) -> None:
    store = DirectoryStore(tmp_path)
    store.put(cluster_key("run", "types.yaml"), write_types(default_types(2)))
    assert read_types(store, "run", 2) == default_types(2)
    store.put(cluster_key("run", "types.yaml"), edit)
    with pytest.raises(InputError, match=rf"clusters/run/types\.yaml.*{message}"):
        read_types(store, "run", 2)
