"""Exports are what COCO, `datasets` and Croissant define, complete, and never mixed."""

from __future__ import annotations

import io
import json
import tarfile
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from rasterio.features import rasterize

from heterotissue.verify import Known
from services.gateway.reader_study.sets import synthetic_set
from shared.contracts.models import EBHI_SEG, ModelRecord, ModelRef
from shared.contracts.synthesize import dataset_key
from shared.datasets.export_folder import export_dataset
from shared.datasets.exports import coco_annotations, write_coco
from shared.datasets.pseudonyms import reveal, source_names
from shared.datasets.samples import DatasetIndex, load_dataset, read_shard
from shared.errors import InputError
from shared.models import read_model, weights_origin
from shared.storage import DamagedObjectError, DirectoryStore
from tests.region_sets import CLASSES
from tests.unit.test_synthesize import make_store, samples, synthesize


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DirectoryStore:
    """A store with dataset `d`, of 6 images in 2 shards, whose model was started from `colon`."""
    store = make_store(tmp_path_factory.mktemp("store"))
    model = read_model(store, ModelRef("toy", "1"))
    store.put_json(model.ref.key, model.model_copy(update={"warm_start": "colon"}))
    assert synthesize(store, steps=1, exports=["coco"]).state == "done"
    return store


def front_matter(folder: Path) -> dict[str, object]:
    _, front, _ = (folder / "README.md").read_text().split("---\n", 2)
    content: dict[str, object] = yaml.safe_load(front)
    return content


def test_an_export_never_mixes_with_other_files(made: DirectoryStore, tmp_path: Path) -> None:
    file = tmp_path / "file.tif"
    file.write_bytes(b"")
    with pytest.raises(InputError, match=r"file.tif is a file: name a folder"):
        export_dataset(made, "d", file)
    folder = tmp_path / "out"
    export_dataset(made, "d", folder)
    (folder / "images/older.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds .* already.*--replace"):
        export_dataset(made, "d", folder, ["coco"])
    assert export_dataset(made, "d", folder, ["coco"], replace=True) == 6
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    keys = [sample.provenance.key for sample in samples(made)]
    assert names == {"README.md", "annotations.json", "classes.json", "manifest.parquet"} | {
        f"images/{key}.png" for key in keys
    }


def test_replacing_deletes_nothing_but_exports(made: DirectoryStore, tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_bytes(b"years of work")
    with pytest.raises(InputError, match="no export, which --replace would delete"):
        export_dataset(made, "d", tmp_path, replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.docx"]


def test_an_export_that_fails_leaves_nothing(made: DirectoryStore, tmp_path: Path) -> None:
    broken = DirectoryStore(tmp_path / "store")
    for key in made.list("datasets/d/"):
        broken.put(key, made.get(key))
    broken.delete("datasets/d/shards/000001.tar")
    folder = tmp_path / "out"
    with pytest.raises(InputError, match=r"000001.tar': run 'htd synthesize --dataset d'"):
        export_dataset(broken, "d", folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "webdataset"])
def test_a_damaged_shard_is_refused(made: DirectoryStore, tmp_path: Path, kind: str) -> None:
    record = load_dataset(made, "d")
    shard = made.get(record.shards[1])
    with tarfile.open(fileobj=io.BytesIO(shard)) as tar:
        ends = [member.offset for member in tar]
    try:
        for damaged in (b"", shard[: ends[-1]], shard[: ends[-1] + 700], b"\0" * len(shard)):
            made.put(record.shards[1], damaged)
            for read in (
                partial(export_dataset, made, "d", tmp_path / "out", [kind]),
                partial(DatasetIndex, made, record),
            ):
                with pytest.raises(DamagedObjectError, match=r"000001.tar' .*htd synthesize .* d'"):
                    read()
        assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    finally:
        made.put(record.shards[1], shard)


def test_a_damaged_manifest_is_refused(made: DirectoryStore, tmp_path: Path) -> None:
    key = dataset_key("d", "manifest.parquet")
    manifest = made.get(key)
    damaged = bytearray(manifest)
    damaged[len(manifest) // 3] ^= 1
    made.put(key, bytes(damaged))
    try:
        for read in (
            partial(export_dataset, made, "d", tmp_path / "out"),
            partial(Known, made, "d"),
            partial(synthetic_set, made, "d"),
        ):
            with pytest.raises(DamagedObjectError, match=r"manifest\.parquet' .*htd synthesize"):
                read()
        assert not list((tmp_path / "out").iterdir())
        assert synthesize(made, steps=1, exports=["coco"]).state == "done"
        assert made.get(key) == manifest
    finally:
        made.put(key, manifest)


def test_coco_has_its_images_and_describes_itself(made: DirectoryStore, tmp_path: Path) -> None:
    export_dataset(made, "d", tmp_path, ["coco"])
    coco = json.loads((tmp_path / "annotations.json").read_text())
    assert list(coco) == ["info", "licenses", "categories", "images", "annotations"]
    assert "6 synthetic" in coco["info"]["description"]
    assert coco["licenses"] == [
        {"id": 1, "name": "CC-BY-4.0", "url": "https://creativecommons.org/licenses/by/4.0/"}
    ]
    for entry in coco["images"]:
        with Image.open(tmp_path / "images" / entry["file_name"]) as image:
            assert image.size == (entry["width"], entry["height"])
    ids = [row["id"] for row in coco["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
    stored = "datasets/d/exports/coco"
    assert made.get(f"{stored}/annotations.json") == (tmp_path / "annotations.json").read_bytes()
    first = coco["images"][0]["file_name"]
    assert made.get(f"{stored}/images/{first}") == (tmp_path / "images" / first).read_bytes()


def test_coco_ids_stay_apart_whatever_the_number_of_parts(made: DirectoryStore) -> None:
    sample = samples(made)[0]
    speckled = np.indices((8, 448)).sum(0) % 2  # each second pixel is a part
    rows = coco_annotations(sample._replace(labels=speckled.astype(np.uint8)))
    assert len(rows) == 8 * 448 // 2
    text = io.StringIO()
    write_coco(text, CLASSES, [], [*rows, *rows])
    ids = [row["id"] for row in json.loads(text.getvalue())["annotations"]]
    assert ids == list(range(1, 2 * len(rows) + 1))


def test_coco_polygons_give_the_label_map_back(made: DirectoryStore) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (24, 18)).astype(np.uint8)
    labels[4:9, 4:9] = 1
    labels[6, 6] = 2  # a hole, which polygons cannot have
    again = np.zeros_like(labels)
    rows = coco_annotations(samples(made)[0]._replace(labels=labels), polygons=True)
    outlined = [row for row in rows if isinstance(row["segmentation"], list)]
    for row in outlined:
        ring = np.reshape(row["segmentation"][0], (-1, 2)).tolist()
        mask = rasterize([{"type": "Polygon", "coordinates": [[*ring, ring[0]]]}], labels.shape)
        assert mask.sum() == row["area"]
        again[mask > 0] = row["category_id"]
    held = [row for row in rows if row not in outlined]
    assert [row["segmentation"]["size"] for row in held] == [[24, 18]] * len(held)
    missing = sum(row["area"] for row in held)
    assert 24 <= missing < labels.size / 2
    assert (again != labels).sum() == missing


def test_a_folder_pairs_images_with_their_masks(made: DirectoryStore, tmp_path: Path) -> None:
    export_dataset(made, "d", tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert [list(row) for row in rows] == [["file_name", "mask_file_name", "key"]] * 6
    for row, sample in zip(rows, samples(made), strict=True):
        assert row["key"] == sample.provenance.key
        with Image.open(tmp_path / row["file_name"]) as image:
            assert np.array_equal(np.asarray(image), sample.image)
        with Image.open(tmp_path / row["mask_file_name"]) as mask:
            assert np.array_equal(np.asarray(mask), sample.labels)
    front = front_matter(tmp_path)
    assert front["license"] == "cc-by-4.0"
    assert front["configs"] == [
        {
            "config_name": "folder",
            "data_files": [
                {"split": "train", "path": ["metadata.jsonl", "images/*.png", "masks/*.png"]}
            ],
            "default": True,
        }
    ]


def test_shards_and_tables_hold_the_same_samples(made: DirectoryStore, tmp_path: Path) -> None:
    export_dataset(made, "d", tmp_path, ["webdataset", "parquet"])
    shards = sorted((tmp_path / "shards").iterdir())
    again = [sample for shard in shards for sample in read_shard(shard.read_bytes())]
    rows = [row for path in sorted((tmp_path / "data").iterdir())
            for row in pq.read_table(path).to_pylist()]  # fmt: skip
    names = source_names(made, load_dataset(made, "d"))
    for sample, shard, row in zip(samples(made), again, rows, strict=True):
        assert reveal(shard.provenance, names) == sample.provenance
        assert row["key"] == sample.provenance.key
        image, mask = (Image.open(io.BytesIO(row[name]["bytes"])) for name in ("image", "mask"))
        assert np.array_equal(np.asarray(image), sample.image)
        assert np.array_equal(np.asarray(mask), sample.labels)
    described = json.loads(
        pq.read_schema(tmp_path / "data/000000.parquet").metadata[b"huggingface"]
    )
    assert described["info"]["features"]["mask"] == {"_type": "Image"}


def test_croissant_states_licence_citation_version_and_day(made: DirectoryStore) -> None:
    described = made.get_json("datasets/d/croissant.json")
    assert described["license"] == EBHI_SEG.url
    assert "2509.17847" in described["citeAs"]
    assert described["version"] == "1.0.0"
    assert described["datePublished"] == datetime.now(UTC).date().isoformat()
    card = made.get("datasets/d/README.md").decode()
    assert "license: cc-by-4.0" in card
    assert "EBHI-Seg (Shi et al. 2023)" in card


def test_a_card_states_the_types_of_every_field(made: DirectoryStore) -> None:
    front = yaml.safe_load(made.get("datasets/d/README.md").decode().split("---\n", 2)[1])
    features = {item["name"]: item for item in front["dataset_info"]["features"]}
    fields = {item["name"]: item for item in features["json"]["struct"]}
    written = json.loads(samples(made)[0].provenance.model_dump_json())
    assert list(fields) == list(written)
    assert fields["copied"] == {"name": "copied", "dtype": "float64"}  # also where it is missing
    assert [item["name"] for item in fields["crops"]["list"]] == list(written["crops"][0])
    assert [item["name"] for item in fields["weights"]["struct"]] == sorted(written["weights"])
    assert features["mask.png"]["dtype"] == "image"


def test_an_origin_is_found_through_all_models(made: DirectoryStore) -> None:
    model = read_model(made, ModelRef("toy", "1"))
    own = _model(made, model, "own", None)
    child = _model(made, model, "child", "models/toy/1")
    grandchild = _model(made, model, "grandchild", "models/child/1")
    assert weights_origin(made, own) is None
    assert weights_origin(made, _model(made, model, "phantoms", "starter")) == EBHI_SEG
    assert weights_origin(made, child) == EBHI_SEG
    assert weights_origin(made, grandchild) == EBHI_SEG
    assert weights_origin(made, _model(made, model, "lost", "models/gone/1")) is None
    assert weights_origin(made, _model(made, model, "ring", "models/ring/1")) is None


def _model(
    store: DirectoryStore, like: ModelRecord, name: str, warm_start: str | None
) -> ModelRecord:
    record = like.model_copy(update={"model": name, "warm_start": warm_start})
    store.put_json(record.ref.key, record)
    return record
