"""Dataset requests: choices, provenance, determinism, exports."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rasterio.features import rasterize

from services.synthesize import gate
from services.synthesize.stage import SynthesizeStage
from shared.contracts.base import Classes
from shared.contracts.sampling import Sampling
from shared.contracts.synthesize import (
    CropSource,
    DatasetRecord,
    DatasetRequest,
    MapSource,
    Provenance,
    wanted_shares,
)
from shared.datasets.export_folder import export_dataset
from shared.datasets.exports import coco_annotations, geojson_bytes, run_lengths
from shared.datasets.map_choice import balance, choose_maps, donors
from shared.datasets.pseudonyms import reveal, source_names
from shared.datasets.samples import (
    DatasetIndex,
    Sample,
    load_dataset,
    read_shard,
    recut_crops,
    relabel,
)
from shared.errors import InputError
from shared.imaging.augment import symmetry
from shared.imaging.codec import decode_png
from shared.imaging.region_sets import RegionIndex, load_region_set
from shared.jobs import JobStatus, Ledger, run_job
from shared.settings import Settings
from shared.storage import DirectoryStore
from tests.models import publish_toy_model
from tests.region_sets import CLASSES, make_region_set


def make_store(folder: Path) -> DirectoryStore:
    store = DirectoryStore(folder)
    publish_toy_model(store, make_region_set(store))
    return store


def synthesize(store: DirectoryStore, **fields: object) -> JobStatus:
    options: dict[str, object] = {
        "dataset": "d", "model": "toy", "images": 6, "steps": 2, "shard_size": 4, "batch_size": 4,
    }  # fmt: skip
    request = DatasetRequest.model_validate(options | fields)
    ledger = Ledger(store)
    return run_job(
        ledger,
        SynthesizeStage(),
        ledger.submit(request, replace=True),
        config=Settings(threads=1, device="cpu"),
    )


def samples(store: DirectoryStore, dataset: str = "d") -> list[Sample]:
    """Return the samples of a dataset, with the names of their slides and regions."""
    record = load_dataset(store, dataset)
    names = source_names(store, record)
    return [
        sample._replace(provenance=reveal(sample.provenance, names))
        for shard in record.shards
        for sample in read_shard(store.get(shard))
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DirectoryStore:
    store = make_store(tmp_path_factory.mktemp("store"))
    status = synthesize(store, exports=["folder", "coco", "geojson"])
    assert status.state == "done", status.failed
    return store


def test_writes_shards_manifest_and_record(made: DirectoryStore) -> None:
    record = made.get_model("datasets/d/dataset.json", DatasetRecord)
    assert record.images == 6
    assert record.shards == ("datasets/d/shards/000000.tar", "datasets/d/shards/000001.tar")
    rows = pq.read_table(io.BytesIO(made.get("datasets/d/manifest.parquet"))).to_pylist()
    assert [row["index"] for row in rows] == list(range(6))
    found = samples(made)
    for row, sample in zip(rows, found, strict=True):
        shares = np.bincount(sample.labels.ravel(), minlength=3) / sample.labels.size
        assert row["fractions"] == pytest.approx(shares.tolist(), abs=1e-6)
        named = source_names(made, record)
        assert named[row["map_region"]] == sample.provenance.map_region
    labels = np.stack([sample.labels for sample in found])
    tumor = (labels == 2).sum() / (labels > 0).sum()
    assert record.proportions["tumor"] == pytest.approx(tumor, abs=1e-5)
    index = DatasetIndex(made, record)
    assert len(index) == 6
    assert np.array_equal(index[5].image, found[5].image)
    assert decode_png(made.get("datasets/d/preview.png")).ndim == 3


def test_many_images_of_few_maps_are_a_caution(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    publish_toy_model(store, make_region_set(store, splits={"a": "train"}, regions=1))
    status = synthesize(store, images=8, steps=1)
    assert status.result is not None, status.failed
    assert status.result["distinct_maps"] == 1
    assert "8 images show only 1 distinct label map," in status.result["cautions"][0]


def test_a_mask_is_its_region_turned(made: DirectoryStore) -> None:
    regions = {r.key: r for r in _regions(made)}
    for sample in samples(made):
        source = sample.provenance
        window = np.s_[source.map_y : source.map_y + 32, source.map_x : source.map_x + 32]
        expected = symmetry(regions[source.map_region].labels[window], source.symmetry)
        assert np.array_equal(sample.labels, expected)


def _regions(store: DirectoryStore) -> list:  # type: ignore[type-arg]
    index = RegionIndex(store, load_region_set(store, "toy"), "train", "test")
    return [index[i] for i in range(len(index))]


def test_crops_are_of_their_class_and_from_elsewhere(made: DirectoryStore) -> None:
    regions = {r.key: r for r in _regions(made)}
    index = RegionIndex(made, load_region_set(made, "toy"), "train")
    for sample in samples(made):
        source = sample.provenance
        present = set(np.unique(sample.labels).tolist()) - {0}
        assert {crop.label for crop in source.crops} == present
        for origin, crop in zip(source.crops, recut_crops(source, index), strict=True):
            assert origin.region != source.map_region
            donor = regions[origin.region]
            window = np.s_[origin.y : origin.y + origin.side, origin.x : origin.x + origin.side]
            assert (donor.labels[window] == origin.label).mean() > 0.4
            assert np.array_equal(donor.image[window], crop.pixels)
            there = sample.labels[crop.y : crop.y + origin.side, crop.x : crop.x + origin.side]
            assert there.shape == (origin.side, origin.side)
            assert (there == origin.label).any()


def test_copies_of_crops_are_made_again_and_left_out_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path)
    monkeypatch.setattr(gate, "BLOCK", 1)
    asked: list[bytes] = []

    def copying(image: np.ndarray, crop: np.ndarray) -> float:  # type: ignore[type-arg]
        asked.append(image.tobytes())
        return 0.9 if len(asked) <= 2 else 0.1

    monkeypatch.setattr(gate, "crop_copying", copying)
    status = synthesize(store, max_copied=0.5)
    assert status.result is not None
    assert (status.result["refused"], status.result["missing"]) == (1, 0)
    found = samples(store)
    assert [sample.provenance.index for sample in found] == list(range(6))
    assert asked[0] not in {sample.image.tobytes() for sample in found}  # other noise
    assert all(sample.provenance.copied == 0.1 for sample in found)
    monkeypatch.setattr(gate, "crop_copying", lambda *_: 0.9)
    status = synthesize(store, dataset="none", max_copied=0.5)
    assert status.state == "failed"
    assert "all copied their crops" in str(status.failed)


def test_the_test_split_gives_neither_maps_nor_crops(made: DirectoryStore) -> None:
    slides = {s.provenance.map_slide for s in samples(made)}
    slides |= {crop.slide for s in samples(made) for crop in s.provenance.crops}
    assert slides == {"slide-a", "slide-b"}


def test_same_request_same_bytes(made: DirectoryStore, tmp_path: Path) -> None:
    store = make_store(tmp_path)
    synthesize(store, exports=["folder", "coco", "geojson"])
    keys = list(made.list("datasets/"))
    assert keys == list(store.list("datasets/"))
    assert [key for key in keys if made.get(key) != store.get(key)] == []


def test_batch_and_shard_size_leave_choices_and_images_alike(
    made: DirectoryStore, tmp_path: Path
) -> None:
    store = make_store(tmp_path)
    synthesize(store, batch_size=1, shard_size=3)
    for one, other in zip(samples(made), samples(store), strict=True):
        assert one.provenance == other.provenance
        assert np.array_equal(one.labels, other.labels)
        assert np.abs(one.image.astype(int) - other.image).max() <= 2
    synthesize(store, seed=1)
    assert samples(store)[0].provenance.seed != samples(made)[0].provenance.seed


def test_crops_from_another_slide_or_the_same(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    for rule, expected in (("other", False), ("same", True)):
        synthesize(store, crops=CropSource(slide=rule))
        for sample in samples(store):
            for crop in sample.provenance.crops:
                assert (crop.slide == sample.provenance.map_slide) is expected


def test_a_smaller_dataset_of_the_same_name_leaves_nothing_of_the_larger(tmp_path: Path) -> None:
    store, fresh = make_store(tmp_path / "a"), make_store(tmp_path / "b")
    synthesize(store, images=6, shard_size=2, exports=["folder", "coco", "geojson"])
    for one in (store, fresh):
        assert synthesize(one, images=3, shard_size=2, exports=["folder", "coco"]).state == "done"
    assert list(store.list("datasets/")) == list(fresh.list("datasets/"))
    assert sum(key.endswith(".png") for key in store.list("datasets/d/exports/folder/images/")) == 3


def test_other_slide_is_refused_where_there_is_only_one(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    publish_toy_model(store, make_region_set(store, splits={"alone": "train"}))
    status = synthesize(store, crops=CropSource(slide="other"))
    assert status.state == "failed"
    assert "has none on any slide but 'alone'" in status.failed["plan"]
    assert list(store.list("datasets/")) == []


def test_clear_refusals(made: DirectoryStore) -> None:
    status = synthesize(made, dataset="x", proportions={"necrosis": 0.5})
    assert "necrosis" in status.failed["plan"]
    status = synthesize(made, dataset="x", proportions={"stroma": 0.8, "tumor": 0.4})
    assert "at most 1 in sum" in status.failed["plan"]
    status = synthesize(made, dataset="x", maps=MapSource(splits=("val",)))
    assert "no region in val" in status.failed["plan"]
    with pytest.raises(InputError, match=r"\['gland'\]"):
        relabel(Classes.of("gland", "tumor"), CLASSES, "the set")


def test_labels_follow_the_models_names_not_the_sets_numbers() -> None:
    table = relabel(Classes.of("tumor", "stroma"), CLASSES, "the set")
    assert table[[0, 1, 2]].tolist() == [0, 2, 1]


@pytest.mark.parametrize(("size", "tolerance"), [(64, 0.01), (32, 0.06)])
def test_proportions_are_reached(tmp_path: Path, size: int, tolerance: float) -> None:
    """Exactly where maps are whole regions; nearly where they are windows of regions."""
    store = DirectoryStore(tmp_path)
    publish_toy_model(store, make_region_set(store), size)
    shape = {"images": 30, "steps": 1, "shard_size": 30, "guidance_map": 1, "guidance_crops": 1}
    free = synthesize(store, **shape).result
    asked = synthesize(store, **shape, proportions={"tumor": 0.6}).result
    assert free is not None
    assert asked is not None
    assert abs(asked["proportions"]["tumor"] - 0.6) < tolerance
    assert asked["proportions"]["tumor"] - free["proportions"]["tumor"] > 0.03


def test_choices_meet_reachable_shares_and_stay_diverse() -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet([0.5] * 6, 400)
    wanted = {1: 0.4, 2: 0.3, 3: 0.15, 4: 0.1, 5: 0.05}
    chosen = choose_maps(shares, 64, wanted, np.random.default_rng(1))
    total = shares[chosen].sum(0)[1:]
    assert np.abs(total / total.sum() - [0.4, 0.3, 0.15, 0.1, 0.05]).max() < 0.01
    assert len(set(chosen.tolist())) > 40
    weights = balance(shares, {1: 0.5})
    expected = weights @ shares
    assert expected[1] / expected[1:].sum() == pytest.approx(0.5, abs=1e-3)


def test_unreachable_shares_come_as_near_as_the_regions_allow() -> None:
    shares = np.array([[0.0, 0.5, 0.5], [0.2, 0.6, 0.2], [0.9, 0.06, 0.04]])
    chosen = choose_maps(shares, 10, {1: 1.0}, np.random.default_rng(0))
    assert set(chosen.tolist()) == {1}


def test_proportions_that_no_map_reaches_are_refused(made: DirectoryStore) -> None:
    status = synthesize(made, dataset="x", proportions={"tumor": 0.99})
    reason = status.failed["plan"]
    found = re.search(r"tumor=0.99: the nearest .* 'toy' \(train\) is tumor=(0\.\d+)", reason)
    assert found is not None
    nearest = synthesize(made, dataset="x", proportions={"tumor": float(found[1])})
    assert nearest.state == "done"
    assert (nearest.result or {})["proportions"]["tumor"] == pytest.approx(float(found[1]), abs=0.1)


def test_a_dataset_larger_than_the_disk_is_refused(
    made: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DirectoryStore, "free", lambda self: 20_000)
    reason = synthesize(made, dataset="x", images=60).failed["plan"]
    assert reason.startswith("60 images of 32 px would take about 0.1 MB, but")
    assert synthesize(made, dataset="x", images=3).state == "done"
    assert (
        "would take about"
        in synthesize(made, dataset="x", images=12, exports=["folder"]).failed["plan"]
    )


def test_without_proportions_every_map_is_taken_equally_often() -> None:
    chosen = choose_maps(np.full((10, 3), 1 / 3), 25, {}, np.random.default_rng(0))
    counts = np.bincount(chosen, minlength=10)
    assert sorted(set(counts.tolist())) == [2, 3]


def test_donors_hold_enough_where_any_does() -> None:
    shares = np.array([[0, 0.5, 0.5], [0, 0.95, 0.05], [0, 0.9, 0.1]])
    slides = np.array(["a", "a", "b"])
    assert donors(shares, slides, 2, "a", "any").tolist() == [0]
    assert donors(shares, slides, 2, "a", "other").tolist() == [2]
    assert donors(shares, slides, 2, "b", "same").tolist() == [2]


def test_proportions_name_classes_in_any_spelling() -> None:
    assert wanted_shares({"tumor": 0.25}, CLASSES) == {2: 0.25}
    assert wanted_shares({" Tumor": 0.25}, CLASSES) == {2: 0.25}
    with pytest.raises(InputError, match=r"name 'tumour', .* did you mean 'tumor'\?"):
        wanted_shares({"tumour": 0.25}, CLASSES)
    with pytest.raises(InputError, match=r"name 'bone', .* it knows 'stroma', 'tumor'"):
        wanted_shares({"bone": 0.25}, CLASSES)
    with pytest.raises(InputError, match="name 'tumor' twice"):
        wanted_shares({"tumor": 0.25, "Tumor": 0.25}, CLASSES)
    with pytest.raises(InputError, match=r"not 0\.5, nan"):
        wanted_shares({"tumor": 0.5, "stroma": float("nan")}, CLASSES)


def _sample(labels: np.ndarray) -> Sample:  # type: ignore[type-arg]
    provenance = Provenance(
        key="00000000", index=0, model="m/1", weights={}, map_regions="r", map_region="r_0_0",
        map_slide="r", map_x=0, map_y=0, symmetry=0, crop_regions="r", crops=(), seed=0,
        sampling=Sampling(steps=1), condition="both",
    )  # fmt: skip
    return Sample(np.zeros((*labels.shape, 3), np.uint8), labels, provenance)


def _decode(counts: list[int], height: int, width: int) -> np.ndarray:  # type: ignore[type-arg]
    values = np.repeat(np.arange(len(counts)) % 2, counts)
    return values.reshape(width, height).T.astype(bool)


def test_coco_masks_give_the_label_map_back() -> None:
    labels = np.random.default_rng(0).integers(0, 3, (12, 9)).astype(np.uint8)
    again = np.zeros_like(labels)
    rows = coco_annotations(_sample(labels))
    for row in rows:
        mask = _decode(row["segmentation"]["counts"], 12, 9)
        assert row["area"] == mask.sum()
        x, y, w, h = row["bbox"]
        assert mask[y : y + h, x : x + w].sum() == row["area"]
        again[mask] = row["category_id"]
    assert np.array_equal(again, labels)
    assert run_lengths(np.array([[True, False], [True, True]])) == [0, 2, 1, 1]
    assert run_lengths(np.zeros((2, 2), bool)) == [4]


def test_geojson_rasterizes_back() -> None:
    labels = np.random.default_rng(1).integers(0, 3, (16, 16)).astype(np.uint8)
    features = json.loads(geojson_bytes(labels, CLASSES))["features"]
    pairs = [
        (f["geometry"], CLASSES.index(f["properties"]["classification"]["name"])) for f in features
    ]
    assert np.array_equal(rasterize(pairs, labels.shape, dtype="uint8"), labels)


def test_exports_in_the_store_and_in_a_folder_are_the_same(
    made: DirectoryStore, tmp_path: Path
) -> None:
    assert export_dataset(made, "d", tmp_path, ["folder", "coco", "geojson"]) == 6
    base = "datasets/d/exports"
    for name in ("images/00000003.png", "masks/00000003.png", "classes.json"):
        assert (tmp_path / name).read_bytes() == made.get(f"{base}/folder/{name}")
    assert (tmp_path / "annotations.json").read_bytes() == made.get(f"{base}/coco/annotations.json")
    name = "geojson/00000003.geojson"
    assert (tmp_path / name).read_bytes() == made.get(f"{base}/{name}")
    with Image.open(tmp_path / "masks/00000003.png") as mask:
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(mask), samples(made)[3].labels)
        assert mask.getpalette()[3:6] == list(CLASSES.colors[1])  # type: ignore[index]
    coco = json.loads((tmp_path / "annotations.json").read_text())
    assert [image["id"] for image in coco["images"]] == [1, 2, 3, 4, 5, 6]
    assert sum(row["area"] for row in coco["annotations"]) == sum(
        int((sample.labels > 0).sum()) for sample in samples(made)
    )
