"""Cluster: tissue types, their maps and regions, and what a person says of them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from services.cluster import gallery, patches, stage, units
from services.cluster.gallery import read_assignments, read_patches
from services.cluster.maps import type_map, vote
from services.cluster.stage import ClusterStage
from services.cluster.units import UNIT_PATCHES, assignment_units
from shared.contracts.cluster import (
    ClusterRecord,
    ClusterRequest,
    cluster_key,
)
from shared.contracts.embed import FeatureRecord, feature_record_key, features_key
from shared.contracts.ingest import (
    CohortRecord,
    PatchGrid,
    SlideRecord,
    cohort_key,
    label_map_key,
    patches_key,
    slide_key,
)
from shared.contracts.jobs import Marker
from shared.contracts.regions import RegionRule
from shared.features import write_features
from shared.imaging.codec import decode_png
from shared.imaging.label_map import LabelMap
from shared.imaging.marks import PARTLY, parse_mark
from shared.imaging.region_sets import RegionIndex, load_region_set
from shared.jobs import JobStatus, Ledger, run_job
from shared.jobs.records import read_record
from shared.storage import DirectoryStore, Store, sha256_file
from tests.texture_slides import RULE, SPLITS, ingest_textures

GRID = PatchGrid(size=64, mpp=1.0, stride=32)
TISSUES = 3


def request(**change: Any) -> ClusterRequest:
    given: dict[str, Any] = {
        "run": "types", "cohort": "textures", "encoder": "ideal", "k": TISSUES,
        "sample_per_slide": 60, "regions": RULE,
    }  # fmt: skip
    return ClusterRequest(**(given | change))


def run(store: DirectoryStore, wanted: ClusterRequest, *, fresh: bool = False) -> JobStatus:
    ledger = Ledger(store)
    return run_job(ledger, ClusterStage(), ledger.submit(wanted, fresh=fresh))


def contents(store: DirectoryStore, name: str) -> dict[str, str]:
    keys = [*store.list(f"clusters/{name}/"), *store.list(f"regions/{name}/")]
    return {key: hashlib.sha256(store.get(key)).hexdigest() for key in keys}


def markers(ledger: Ledger, job: str) -> dict[str, Marker]:
    """Return the markers of a job's shards, which say when and where each was made."""
    folder = ledger.key(job, "done/")
    keys = [key for key in ledger.store.list(folder) if not key.endswith("/plan.json")]
    return {key.removeprefix(folder): read_record(ledger.store, key, Marker) for key in keys}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> DirectoryStore:
    """Slides whose features say their tissue plainly, clustered into three types."""
    folder = tmp_path_factory.mktemp("cluster")
    store = DirectoryStore(folder / "store")
    ingest_textures(store, folder)
    counts, written = {}, {}
    for number, slide in enumerate(SPLITS):
        table = pq.read_table(store.local(patches_key("textures", slide)))
        shares = np.array(table["fractions"].to_pylist())[:, 1:]
        noise = np.random.default_rng(number).normal(0, 0.05, (len(shares), 8))
        features = (shares @ np.eye(3, 8) + noise).astype(np.float32)
        coords = np.stack([np.asarray(table[axis]) for axis in ("x", "y")], 1)
        record = store.get_model(slide_key(slide), SlideRecord)
        written[slide] = features_key("ideal", "textures", slide)
        with store.writing(written[slide]) as path:
            write_features(path, coords, [features], 8, record, GRID, "ideal")
        counts[slide] = len(coords)
    made = FeatureRecord(
        encoder="ideal", cohort="textures", dim=8, license="none", slides=counts,
        sha256={slide: sha256_file(store.local(key)) for slide, key in written.items()},
    )  # fmt: skip
    store.put_json(feature_record_key("ideal", "textures"), made)
    status = run(store, request(classifier_steps=5))
    assert status.state == "done", status.failed
    return store


def test_regions_follow_those_of_the_cohort(store: DirectoryStore) -> None:
    cohort = store.get_model(cohort_key("textures"), CohortRecord)
    assert (cohort.scale, RULE.size) == ((RULE.size, RULE.mpp), 128)
    rule = request(regions=None).rule(cohort)
    assert (rule.size, rule.mpp) == (RULE.size, RULE.mpp)
    older = cohort.model_copy(update={"regions": None})
    assert older.scale == (2 * GRID.size, GRID.mpp)
    assert request().rule(older) == RULE


def test_small_slides_are_assigned_together() -> None:
    """Large slides are alone, and a slide that is added changes the units around it alone."""
    small = {f"slide-{n:04d}": 300 for n in range(400)}
    units = assignment_units(small | {"slide-0200x": 90_000})
    assert [name for unit in units for name in unit] == sorted(small | {"slide-0200x": 90_000})
    assert ("slide-0200x",) in units
    assert 8 < len(small) / len(units) < 32
    assert all(sum(small.get(name, 0) for name in unit) <= UNIT_PATCHES for unit in units)
    before = set(assignment_units(small))
    assert len(set(assignment_units(small | {"slide-0123x": 300})) - before) == 1
    assert len(assignment_units(dict.fromkeys(small, 50_000))) == len(small)


def test_slides_share_the_largest_number_of_samples(store: DirectoryStore) -> None:
    status = run(store, request(run="capped", max_samples=90))
    assert status.state == "done", status.failed
    train = [slide for slide, split in SPLITS.items() if split == "train"]
    sizes = [np.load(store.local(cluster_key("capped", f"samples/{s}.npy"))).shape for s in train]
    assert [size[0] for size in sizes] == [30, 30, 30]


def test_streaming_assigns_as_all_at_once(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 7 patches, and a unit for each slide, give what the finished run has."""
    features = store.get_model(feature_record_key("ideal", "textures"), FeatureRecord)
    assert len(assignment_units(features.slides)) < len(SPLITS)
    monkeypatch.setattr(patches, "PATCHES_AT_ONCE", 7)
    monkeypatch.setattr(units, "UNIT_PATCHES", 1)
    assert len(assignment_units(features.slides)) == len(SPLITS)
    monkeypatch.setattr(stage, "CLASSIFIER_SLIDES", 1)
    shown: list[str] = []

    def read(store: Store, cohort: CohortRecord, slide: str, spots: list[Any]) -> Any:
        shown.append(slide)
        return read_patches(store, cohort, slide, spots)

    monkeypatch.setattr(stage, "read_patches", read)
    status = run(store, request(run="streamed", classifier_steps=1))
    assert status.state == "done", status.failed
    assert [SPLITS[slide] for slide in shown] == ["train", "test"]  # of four slides
    one, other = (
        store.get_model(cluster_key(name, "run.json"), ClusterRecord)
        for name in ("types", "streamed")
    )
    assert one.counts == other.counts
    assert one.mean_distance == pytest.approx(other.mean_distance, abs=1e-5)
    for slide in SPLITS:
        whole, parts = (
            pq.read_table(store.local(cluster_key(name, f"assignments/{slide}.parquet")))
            for name in ("types", "streamed")
        )
        assert whole.select(["x", "y", "cluster"]) == parts.select(["x", "y", "cluster"])
        assert np.allclose(whole["distance"], parts["distance"], atol=1e-6)


@pytest.mark.parametrize("stride", [16, 32, 64])
def test_every_pixel_between_patches_has_a_type(stride: int) -> None:
    """Whatever the overlap, a slide of two halves gives a whole map of two halves."""
    grid = PatchGrid(size=64, mpp=1.0, stride=stride)
    corners = np.arange(0, 512 - 64 + 1, stride) * 2  # level 0 has 0.5 µm/px
    coords = np.stack(np.meshgrid(corners, corners), -1).reshape(-1, 2)
    record = SlideRecord.model_construct(width=1024, height=1024, mpp=0.5, mpp_y=0.5)
    clusters = (coords[:, 0] + 64 > 512).astype(np.uint8)
    covers = 64 // stride
    labels = vote(type_map(coords, clusters, record, grid), 2, covers, 0)
    side = 512 // stride
    assert labels.shape == (side, side)
    edge = covers // 2
    inner = labels[edge : side - edge, edge : side - edge]
    assert (inner > 0).all()
    middle = side // 2
    assert (labels[edge : side - edge, edge : middle - 1] == 1).all()
    assert (labels[edge : side - edge, middle + 1 : side - edge] == 2).all()


def test_smoothing_outvotes_a_speck_and_keeps_background() -> None:
    labels = np.ones((9, 9), np.uint8)
    labels[4, 4] = 2
    labels[:, 7:] = 0
    assert vote(labels, 2, 1, 0)[4, 4] == 2
    smooth = vote(labels, 2, 1, 1)
    assert smooth[4, 4] == 1
    assert not smooth[:, 7:].any()


def test_types_follow_tissue_on_held_out_slides(store: DirectoryStore) -> None:
    with (
        LabelMap(store.local(cluster_key("types", "labels/s3.tif"))) as found,
        LabelMap(store.local(label_map_key("s3", "textures"))) as truth,
    ):
        assert found.mpp == pytest.approx(32.0)
        types, tissue = (
            found.whole(),
            truth.read(0, 0, (found.width, found.height), 32.0, (1.0, 1.0)),
        )
    both = (types > 0) & (tissue > 0)
    table = np.zeros((TISSUES + 1, TISSUES + 1))
    np.add.at(table, (types[both], tissue[both]), 1)
    assert table.max(1).sum() / both.sum() > 0.9
    assert both.sum() / (tissue > 0).sum() > 0.85


def test_the_record_counts_every_patch(store: DirectoryStore) -> None:
    record = store.get_model(cluster_key("types", "run.json"), ClusterRecord)
    features = store.get_model(feature_record_key("ideal", "textures"), FeatureRecord)
    assert sum(record.counts) == sum(features.slides.values())
    assert len(record.mean_distance) == record.k == TISSUES
    assert max(record.mean_distance) < 0.5
    assert record.classifier_slides == ("s3",)
    assert record.classifier_accuracy is not None


def test_regions_hold_the_types_map(store: DirectoryStore) -> None:
    regions = load_region_set(store, "types")
    assert regions.classes.names == ["background", "type 1", "type 2", "type 3"]
    assert {part.slide: part.split for part in regions.slides} == SPLITS
    found = list(RegionIndex(store, regions, "train", "test"))
    assert found
    for region in found:
        assert region.image.shape == (RULE.size, RULE.size, 3)
        blocks = region.labels.reshape(4, 32, 4, 32)
        assert (blocks == blocks[:, :1, :, :1]).all()  # one type for each patch stride
        shares = np.bincount(region.labels.ravel(), minlength=4)[1:] / (region.labels > 0).sum()
        assert ((shares >= RULE.low) & (shares <= RULE.high)).sum() >= RULE.min_classes


def test_the_gallery_has_a_row_for_each_type(store: DirectoryStore) -> None:
    picture = decode_png(store.get(cluster_key("types", "gallery.png")))
    assert picture.shape[0] >= TISSUES * 96


def test_examples_are_taken_of_few_slides(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slides are searched until each type has its examples; a rare type is found in the end."""
    monkeypatch.setattr(gallery, "SLIDES_AT_ONCE", 1)
    cohort = store.get_model(cohort_key("textures"), CohortRecord)
    # Each slide has all types. The fourth type, of five patches, is in the last slide alone.
    last = np.random.default_rng(0).permutation(sorted(SPLITS)).tolist()[-1]
    read: list[str] = []

    def tables(store: DirectoryStore, run: str, slide: str) -> pa.Table:
        read.append(slide)
        table = read_assignments(store, run, slide)
        clusters = np.asarray(table["cluster"]).copy()
        clusters[:5] = 3 if slide == last else clusters[:5]
        return table.set_column(2, "cluster", pa.array(clusters))

    monkeypatch.setattr(gallery, "read_assignments", tables)
    found = gallery.find_examples(store, "types", cohort, (99, 99, 99))
    assert {label: len(images) for label, images in found.items()} == dict.fromkeys((1, 2, 3), 10)
    assert len(read) == 1
    found = gallery.find_examples(store, "types", cohort, (99, 99, 99, 5))
    assert len(found[4]) == 5
    assert len(read) == 1 + len(SPLITS)


def test_running_again_gives_the_same_bytes(store: DirectoryStore) -> None:
    before = contents(store, "types")
    assert run(store, request(classifier_steps=5), fresh=True).state == "done"
    assert contents(store, "types") == before


def test_damaged_features_are_not_clustered(store: DirectoryStore) -> None:
    key = features_key("ideal", "textures", "s0")
    whole = store.get(key)
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    store.put(key, bytes(damaged))
    try:
        status = run(store, request(run="damaged"))
        assert status.state == "failed"
        assert f"{key!r} of" in " ".join(status.failed.values())
        assert "htd embed --encoder ideal" in " ".join(status.failed.values())
    finally:
        store.put(key, whole)
    assert run(store, request(run="damaged")).state == "done"


def test_a_types_file_that_nobody_edited_is_no_input(store: DirectoryStore) -> None:
    ledger, asked = Ledger(store), request(run="again")
    job = ledger.identify(asked)
    assert run(store, asked).state == "done"
    assert ledger.identify(asked) == job
    key = cluster_key("again", "types.yaml")
    before = contents(store, "again")
    store.put(key, store.get(key).replace(b"type 1", b"stroma"))
    assert ledger.identify(asked) != job
    marked = markers(ledger, job)
    assert run(store, asked).state == "done"
    assert markers(ledger, ledger.identify(asked)) == marked  # a name makes no new region
    changed = {key for key, digest in contents(store, "again").items() if before[key] != digest}
    named = {"types.yaml", "gallery.png", "set.json"}
    assert {key.rpartition("/")[2] for key in changed} <= named


def test_edited_types_are_kept_and_applied(store: DirectoryStore) -> None:
    assert run(store, request(run="named")).state == "done"
    key = cluster_key("named", "types.yaml")
    before = contents(store, "named")
    assert run(store, request(run="named")).state == "done"
    assert contents(store, "named") == before
    default = store.get(key)
    plain = yaml.safe_load(default)
    plain[1]["name"] = "stroma"
    plain[3]["merge"] = 1
    store.put(key, yaml.safe_dump(plain).encode())
    assert run(store, request(run="named")).state == "done"
    regions = load_region_set(store, "named")
    assert regions.classes.names == ["background", "stroma", "type 2"]
    applied = contents(store, "named")
    assert max(int(r.labels.max()) for r in RegionIndex(store, regions, "train")) == 2
    assert run(store, request(run="named"), fresh=True).state == "done"
    assert contents(store, "named") == applied
    store.put(cluster_key("named", "centroids.npy"), b"cut off")
    assert run(store, request(run="named")).state == "done"
    assert contents(store, "named") == applied
    store.put(key, default)  # and back
    assert run(store, request(run="named")).state == "done"
    assert contents(store, "named") == before


def test_types_that_change_while_regions_are_cut_are_not_mixed(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = cluster_key("changing", "types.yaml")
    cut = stage.cut_slide

    def cut_slide(given: Store, run: str, *more: Any) -> dict[str, Any]:
        done = cut(given, run, *more)
        types = yaml.safe_load(store.get(key))
        types[3]["merge"] = 1
        store.put(key, yaml.safe_dump(types).encode())
        return done

    monkeypatch.setattr(stage, "cut_slide", cut_slide)
    ended = run(store, request(run="changing"))
    assert ended.state == "failed"
    assert "types.yaml was changed while regions were cut" in " ".join(ended.failed.values())
    monkeypatch.undo()
    assert run(store, request(run="changing")).state == "done"
    assert load_region_set(store, "changing").classes.names == ["background", "type 1", "type 2"]


def test_what_shows_a_synthetic_slide_says_so(store: DirectoryStore) -> None:
    assert run(store, request(run="marked")).state == "done"
    slide = min(SPLITS)
    record = store.get_model(slide_key(slide), SlideRecord)
    store.put_json(slide_key(slide), record.model_copy(update={"synthetic": True}))
    try:
        assert run(store, request(run="marked"), fresh=True).state == "done"
    finally:
        store.put_json(slide_key(slide), record)
    regions = load_region_set(store, "marked")
    assert [part.slide for part in regions.slides if part.synthetic] == [slide]
    for name in ("gallery.png", "examples/1.png"):
        with Image.open(store.local(cluster_key("marked", name))) as picture:
            assert parse_mark(picture.info["xmp"]) == PARTLY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": "coarse", "regions": RegionRule(size=48, mpp=1.0)}, "too coarse for regions"),
        ({"run": "many", "k": 255, "sample_per_slide": 20}, "give 60 patches to cluster"),
    ],
)
def test_impossible_requests_fail_with_the_reason(
    store: DirectoryStore, change: dict[str, Any], message: str
) -> None:
    status = run(store, request(**change))
    assert status.state == "failed"
    assert message in " ".join(status.failed.values())
