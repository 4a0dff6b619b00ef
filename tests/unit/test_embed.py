"""Embed: the embedded encoder learns tissue, and features keep the field's layout."""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from heterotissue.embedding_cost import embedding_line
from services.embed import encoding, training
from services.embed.encoding import part_bounds
from services.embed.stage import EmbedStage
from shared.contracts.embed import (
    EmbedRequest,
    FeatureRecord,
    embedded_key,
    feature_record_key,
    features_key,
)
from shared.contracts.ingest import (
    CohortRecord,
    PatchGrid,
    SlideRecord,
    cohort_key,
    patches_key,
    slide_key,
)
from shared.encoders import PatchNet, random_net
from shared.errors import InputError
from shared.features import read_features, write_features
from shared.jobs import Context, Ledger, run_job
from shared.settings import Settings
from shared.storage import DirectoryStore, StoreView
from shared.storage.formats import table_bytes
from tests.texture_slides import SPLITS, ingest_textures

STEPS = 120
BATCH = 32


def embed(store: DirectoryStore, encoder: str, *, steps: int = STEPS, fresh: bool = False) -> None:
    ledger = Ledger(store)
    request = EmbedRequest(cohort="textures", encoder=encoder, train_steps=steps)
    status = run_job(ledger, EmbedStage(), ledger.submit(request, fresh=fresh))
    assert status.state == "done", status.failed


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> DirectoryStore:
    folder = tmp_path_factory.mktemp("embed")
    store = DirectoryStore(folder / "store")
    ingest_textures(store, folder)
    embed(store, "random")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "BATCH", BATCH)
        embed(store, "embedded")
    return store


def test_the_estimate_counts_the_patches_of_the_cohort(store: DirectoryStore) -> None:
    config = Settings(threads=1, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "BATCH", BATCH)
        request = EmbedRequest(cohort="textures", train_steps=7)
        line = embedding_line(store, request, config) or ""
    record = store.get_model(feature_record_key("random", "textures"), FeatureRecord)
    assert line.startswith("estimate: 7 steps of the encoder × ")
    assert f" + {sum(record.slides.values()):,} patches × " in line
    assert "about" in line
    done = request.model_copy(update={"train_steps": STEPS})
    assert embedding_line(store, done, config) is None


def test_each_slide_that_the_encoder_learns_from_gives_many_windows(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step contrasts windows of one slide: of too many slides, some are drawn."""
    taught: list[np.ndarray[Any, Any]] = []

    def train(windows: object, slides: np.ndarray[Any, Any], *rest: object) -> PatchNet:
        taught.append(slides)
        return random_net(0)

    monkeypatch.setattr(training, "train_encoder", train)
    record = store.get_model(cohort_key("textures"), CohortRecord)
    context = Context(StoreView(store), threads=1, device="cpu", report=lambda *_: None)
    for patches in (64, 96):
        request = EmbedRequest(cohort="textures", train_patches=patches)
        weights = store.get(embedded_key("textures"))
        assert training.fit_encoder(request, record, context) == {"windows": patches}
        store.put(embedded_key("textures"), weights)
    assert [np.bincount(slides).tolist() for slides in taught] == [[32, 32], [32, 32, 32]]


def agreement(store: DirectoryStore, encoder: str) -> float:
    """Adjusted Rand index of clusters and true tissue, over all slides together."""
    features, truth = [], []
    for slide in SPLITS:
        table = pq.read_table(store.local(patches_key("textures", slide)))
        shares = np.array(table["fractions"].to_pylist())[:, 1:]
        pure = shares.max(1) > 0.8
        found = read_features(store.local(features_key(encoder, "textures", slide)))
        features.append(found.features[pure])
        truth.append(shares[pure].argmax(1))
    points = np.concatenate(features)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    clusters = KMeans(3, n_init=5, random_state=0).fit_predict(points)
    return float(adjusted_rand_score(np.concatenate(truth), clusters))


def test_the_embedded_encoder_finds_tissue_better_than_random_weights(
    store: DirectoryStore,
) -> None:
    trained, random = agreement(store, "embedded"), agreement(store, "random")
    assert trained > random + 0.2
    assert trained > 0.5


def test_the_record_lists_what_was_embedded(store: DirectoryStore) -> None:
    record = store.get_model(feature_record_key("embedded", "textures"), FeatureRecord)
    assert set(record.slides) == set(SPLITS)
    assert record.license == "Apache-2.0"
    for slide, count in record.slides.items():
        found = read_features(store.local(features_key("embedded", "textures", slide)))
        assert found.features.shape == (count, record.dim)


def test_training_and_embedding_again_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(tmp_path / "store")
    ingest_textures(store, tmp_path, side=256, stride=64)
    keys = [embedded_key("textures"), features_key("embedded", "textures", "s0")]
    embed(store, "embedded", steps=2)
    first = [store.get(key) for key in keys]
    time.sleep(1.1)  # HDF5 could write times of a second's resolution
    embed(store, "embedded", steps=2, fresh=True)
    assert [store.get(key) for key in keys] == first
    check_parts(store, monkeypatch)


def check_parts(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that the parts of large slides are joined, and kept by a later job."""
    key = features_key("embedded", "textures", "s0")
    whole = read_features(store.local(key))
    monkeypatch.setattr(encoding, "UNIT_PATCHES", len(whole.coords) // 2)
    embed(store, "embedded", steps=2, fresh=True)
    joined = read_features(store.local(key))
    assert (joined.coords == whole.coords).all()
    np.testing.assert_allclose(joined.features, whole.features, atol=1e-5)
    assert not list(store.list("features/embedded/textures/parts/"))
    record = store.get_model(feature_record_key("embedded", "textures"), FeatureRecord)
    assert record.slides["s0"] == len(whole.coords)
    monkeypatch.setattr(encoding, "open_slide", None)  # no slide is read again
    request = EmbedRequest(cohort="textures", train_steps=2, batch_size=32)
    ledger = Ledger(store)
    status = run_job(ledger, EmbedStage(), ledger.submit(request, replace=True))
    assert status.state == "done", status.failed


def test_files_have_tridents_layout(store: DirectoryStore) -> None:
    table = pq.read_table(store.local(patches_key("textures", "s0")))
    with h5py.File(store.local(features_key("embedded", "textures", "s0")), "r") as file:
        coords, features = file["coords"], file["features"]
        assert coords.dtype == np.int64
        assert features.dtype == np.float32
        assert coords[:, 0].tolist() == table["x"].to_pylist()
        assert dict(coords.attrs) == {
            "patch_size": 64, "patch_size_level0": 64, "level0_magnification": 10.0,
            "target_magnification": 10.0, "overlap": 32, "name": "s0", "savetodir": "",
            "level0_width": 512, "level0_height": 512,
        }  # fmt: skip
        assert dict(features.attrs) == {"name": "s0", "savetodir": "", "encoder": "embedded"}


def test_a_slide_without_patches_has_an_empty_file(store: DirectoryStore, tmp_path: Path) -> None:
    slide = store.get_model(slide_key("s0"), SlideRecord)
    path = tmp_path / "none.h5"
    grid = PatchGrid(size=64, mpp=1.0, stride=32)
    write_features(path, np.zeros((0, 2), np.int64), [], 8, slide, grid, "random")
    assert read_features(path).features.shape == (0, 8)


def test_white_and_blurred_patches_are_left_out_and_counted(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patches at the edge of the tissue are partly white; the slide is embedded in two parts."""
    cohort = store.get_json("cohorts/textures.json")
    table = pq.read_table(store.local(patches_key("textures", "s0"))).slice(0, 24)
    store.put_json(
        "cohorts/few.json",
        cohort
        | {"cohort": "few", "splits": {"s0": "train"}, "counts": {"s0": len(table)}, "places": {}},
    )
    store.put(patches_key("few", "s0"), table_bytes(table))
    monkeypatch.setattr(encoding, "UNIT_PATCHES", 12)
    pixels = tifffile.imread(store.get_model(slide_key("s0"), SlideRecord).source)
    corners = list(zip(table["x"].to_pylist(), table["y"].to_pylist(), strict=True))
    shown = [pixels[y : y + 64, x : x + 64] for x, y in corners]
    shares = [float((patch >= 220).all(2).mean()) for patch in shown]
    focus = [cv2.Laplacian(cv2.cvtColor(p, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var() for p in shown]
    request = EmbedRequest(
        cohort="few",
        encoder="random",
        max_white=float(np.median(shares)),
        min_sharpness=float(np.quantile(focus, 0.3)) + 1e-3,
    )
    assert request.max_white is not None
    assert request.min_sharpness is not None
    white = [share > request.max_white for share in shares]
    blurred = [
        value < request.min_sharpness and not out for value, out in zip(focus, white, strict=True)
    ]
    counts = {"white": sum(white), "blurred": sum(blurred)}
    assert min(counts.values()) > 0
    ledger = Ledger(store)
    status = run_job(ledger, EmbedStage(), ledger.submit(request))
    assert status.state == "done", status.failed
    assert status.result is not None
    assert status.result["filtered_patches"] == {"s0": counts}
    found = read_features(store.local(features_key("random", "few", "s0")))
    kept = [not (one or other) for one, other in zip(white, blurred, strict=True)]
    assert found.coords.tolist() == [list(c) for c, k in zip(corners, kept, strict=True) if k]
    record = store.get_model(feature_record_key("random", "few"), FeatureRecord)
    assert (record.max_white, record.min_sharpness) == (request.max_white, request.min_sharpness)
    assert (record.filtered, record.slides) == ({"s0": counts}, {"s0": sum(kept)})
    assert not list(store.list("features/random/few/parts/"))
    with h5py.File(store.local(features_key("random", "few", "s0"))) as file:
        assert file["features"].attrs["max_white"] == request.max_white
    with pytest.raises(ValueError, match="filter them in the tool that made them"):
        EmbedRequest(cohort="few", imported="/features", max_white=0.5)


def test_parts_are_whole_rows_of_patches() -> None:
    y = np.repeat(np.arange(7) * 64, [5, 9, 1, 30, 2, 2, 6])
    bounds = [part_bounds(y, part, 3) for part in range(3)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == len(y)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(bounds))
    assert all(y[start] != y[start - 1] for start, _ in bounds[1:])


def external_storage(file: h5py.File, secret: Path) -> None:
    size = secret.stat().st_size
    file.create_dataset("features", (size, 1), np.uint8, external=[(secret, 0, size)])


def external_link(file: h5py.File, secret: Path) -> None:
    with h5py.File(secret.with_suffix(".h5"), "w") as other:
        other["rows"] = np.ones((3, 1), np.float32)
    file["features"] = h5py.ExternalLink(secret.with_suffix(".h5"), "rows")


def soft_link(file: h5py.File, secret: Path) -> None:
    file["rows"] = np.ones((3, 1), np.float32)
    file["features"] = h5py.SoftLink("/rows")


def virtual_dataset(file: h5py.File, secret: Path) -> None:
    with h5py.File(secret.with_suffix(".h5"), "w") as other:
        other["rows"] = np.ones((3, 1), np.float32)
    layout = h5py.VirtualLayout((3, 1), np.float32)
    layout[:] = h5py.VirtualSource(secret.with_suffix(".h5"), "rows", (3, 1))
    file.create_virtual_dataset("features", layout)


def group(file: h5py.File, secret: Path) -> None:
    file.create_group("features")


def words(file: h5py.File, secret: Path) -> None:
    file["features"] = ["a", "b", "c"]


def huge(file: h5py.File, secret: Path) -> None:
    file.create_dataset("features", (3, 1 << 40), np.float32, chunks=(1, 1024))


@pytest.mark.parametrize(
    "attack",
    [external_storage, external_link, soft_link, virtual_dataset, group, words, huge],
)
def test_a_features_file_reaches_no_other_file(
    attack: Callable[[h5py.File, Path], None], tmp_path: Path
) -> None:
    secret, path = tmp_path / "secret", tmp_path / "s0.h5"
    secret.write_bytes(b"key")
    with h5py.File(path, "w") as file:
        file["coords"] = np.zeros((3, 2), np.int64)
        attack(file, secret)
    with pytest.raises(InputError, match=r"s0\.h5: 'features'"):
        read_features(path)


def test_a_file_that_is_no_hdf5_is_named(tmp_path: Path) -> None:
    path = tmp_path / "slide.h5"
    path.write_bytes(b"no features")
    with pytest.raises(InputError, match=r"slide\.h5 is not a features file"):
        read_features(path)


@pytest.mark.parametrize("encoder", ["random", "embedded"])
def test_features_need_room(
    store: DirectoryStore, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DirectoryStore, "free", lambda self: 1000)
    context = Context(store, threads=1, device="cpu", report=lambda *_: None)
    with pytest.raises(InputError, match=r"features of [\d,]+ patches, 384 wide would take about"):
        EmbedStage().plan(EmbedRequest(cohort="textures", encoder=encoder), context)


def test_a_cohort_without_patches_cannot_train(store: DirectoryStore) -> None:
    ledger = Ledger(store)
    cohort = store.get_json("cohorts/textures.json")
    cohort |= {"cohort": "held", "splits": {"s3": "test"}, "sha256": {"s3": cohort["sha256"]["s3"]}}
    store.put_json("cohorts/held.json", cohort)
    status = run_job(ledger, EmbedStage(), ledger.submit(EmbedRequest(cohort="held")))
    assert status.state == "failed"
    assert "too few to train an encoder" in next(iter(status.failed.values()))


def test_a_damaged_table_of_patches_is_named(store: DirectoryStore) -> None:
    key = patches_key("textures", "s0")
    whole = store.get(key)
    table = pq.read_table(io.BytesIO(whole))
    moved = table.set_column(0, "x", pa.array(np.asarray(table["x"]) + 1))
    flipped = bytearray(whole)
    group = pq.ParquetFile(io.BytesIO(whole)).metadata.row_group(0)
    columns = {group.column(n).path_in_schema: group.column(n) for n in range(group.num_columns)}
    flipped[(columns["x"].dictionary_page_offset + columns["x"].data_page_offset) // 2] ^= 1
    request = EmbedRequest(cohort="textures", encoder="random", max_white=0.97)
    try:
        for damaged in (table_bytes(moved), bytes(flipped)):
            store.put(key, damaged)
            job = Ledger(store).submit(request, fresh=True, replace=True)
            status = run_job(Ledger(store), EmbedStage(), job)
            assert status.state == "partial", "the other slides are embedded"
            assert set(status.failed) == {"s0"}
            assert f"{key!r} of" in status.failed["s0"]
            assert "htd ingest --cohort textures" in status.failed["s0"]
    finally:
        store.put(key, whole)


def test_features_below_a_prefix_are_part_of_the_job(tmp_path: Path) -> None:
    store, given = DirectoryStore(tmp_path), "features/given/"
    store.put_json(cohort_key("c"), {"cohort": "c"})
    store.put(f"{given}a.h5", b"1")
    request = EmbedRequest(cohort="c", encoder="e", imported=given)
    before = Ledger(store).identify(request)
    store.put(f"{given}a.h5", b"2")
    assert Ledger(store).identify(request) != before
