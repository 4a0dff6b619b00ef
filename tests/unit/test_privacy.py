"""What leaves the store: pseudonyms instead of names, and marks in synthetic pictures."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from heterotissue.cli.app import app
from heterotissue.verify import Known, verify
from services.evaluate.held_out import changed as changed_regions
from services.synthesize import gate
from services.synthesize.gate import Gate
from shared.contracts.evaluate import EvaluateRequest
from shared.contracts.regions import RegionSet, region_set_key
from shared.contracts.synthesize import PRIVATE, PSEUDONYM_KEY, SLIDES
from shared.datasets.export_folder import export_dataset
from shared.datasets.pseudonyms import dataset_pseudonyms, source_names
from shared.datasets.samples import load_dataset, read_shard
from shared.errors import InputError
from shared.imaging.augment import symmetry
from shared.imaging.codec import decode_png, encode_png
from shared.imaging.marks import Mark, mark_png, parse_mark
from shared.imaging.region_sets import RegionIndex, load_region_set
from shared.jobs import Context
from shared.storage import DamagedObjectError, DirectoryStore
from tests.models import publish_toy_model
from tests.region_sets import make_region_set
from tests.unit.test_synthesize import synthesize

PLANTED = ("S24-1187-A1", "S24-0092-B2", "DOE-JANE-1961")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DirectoryStore:
    """A store with datasets `d` and `e`, made from slides and a patient with planted names."""
    store = DirectoryStore(tmp_path_factory.mktemp("store"))
    one, other, patient = PLANTED
    record = make_region_set(store, splits={one: "train", other: "train"})
    parts = tuple(part.model_copy(update={"patient": patient}) for part in record.slides)
    record = record.model_copy(update={"slides": parts})
    store.put_json(region_set_key(record.name), record)
    publish_toy_model(store, record)
    for seed, name in enumerate(("d", "e")):
        status = synthesize(
            store, dataset=name, seed=seed, images=4, steps=1, exports=["folder", "coco", "geojson"]
        )
        assert status.state == "done", status.failed
    return store


def planted_in(data: bytes) -> list[str]:
    """Return the planted names in the bytes of a file, packed or not."""
    bodies = [data, *_unpacked(data)]
    return [name for name in PLANTED if any(name.encode() in body for body in bodies)]


def _unpacked(data: bytes) -> list[bytes]:
    if data[:4] != b"PAR1":
        return []
    return [repr(pq.read_table(io.BytesIO(data)).to_pylist()).encode()]


def test_no_name_leaves_with_a_dataset(made: DirectoryStore, tmp_path: Path) -> None:
    leaving = {key: made.get(key) for key in made.list("datasets/d/") if not key.endswith(PRIVATE)}
    assert {key: names for key, data in leaving.items() if (names := planted_in(data))} == {}
    assert planted_in(made.get("datasets/d/choices.parquet"))  # so the search finds names
    key = made.get(f"datasets/d/{PSEUDONYM_KEY}")
    assert not [name for name, data in leaving.items() if key in data]
    export_dataset(made, "d", tmp_path, ["folder", "coco", "geojson", "webdataset", "parquet"])
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 19
    assert [path for path in files if planted_in(path.read_bytes())] == []


def test_pseudonyms_group_within_a_dataset_and_differ_between_two(made: DirectoryStore) -> None:
    named = {}
    for name in ("d", "e"):
        record = load_dataset(made, name)
        names = source_names(made, record)
        provenances = [s.provenance for key in record.shards for s in read_shard(made.get(key))]
        slides = {each.map_slide for each in provenances}
        assert {names[each] for each in slides} == set(PLANTED[:2])
        assert len(slides) == 2
        for each in provenances:
            assert names[each.map_region].startswith(names[each.map_slide])
        named[name] = set(names)
        assert PLANTED[2] in names.values()
    assert named["d"].isdisjoint(named["e"])


def test_an_owner_resolves_pseudonyms(made: DirectoryStore) -> None:
    pseudonym = dataset_pseudonyms(made, load_dataset(made, "d").request).of("slide", PLANTED[0])
    runner, where = CliRunner(), ["--store", str(made.root)]
    shown = runner.invoke(app, ["resolve", "d", *where])
    assert sum(name in shown.output for name in PLANTED) == 3
    shown = runner.invoke(app, ["resolve", "d", pseudonym, *where])
    assert shown.output == f"{pseudonym}  {PLANTED[0]}\n"
    with pytest.raises(InputError, match="dataset 'e' has no slide-"):
        runner.invoke(app, ["resolve", "e", pseudonym, *where], catch_exceptions=False)


def test_names_stay_those_that_a_dataset_was_made_from(made: DirectoryStore) -> None:
    """Though another slide has a name later, as when a cohort is replaced."""
    record = made.get_model(region_set_key("toy"), RegionSet)
    before = source_names(made, load_dataset(made, "d"), regions=False)
    changed = record.model_copy(
        update={"slides": tuple(part for part in record.slides if part.slide == PLANTED[0])}
    )
    request = EvaluateRequest(report="r", dataset="d")
    assert changed_regions(made, request) == []
    made.put_json(region_set_key("toy"), changed)
    try:
        assert source_names(made, load_dataset(made, "d"), regions=False) == before
        shown = CliRunner().invoke(app, ["resolve", "d", "--store", str(made.root)])
        assert PLANTED[1] in shown.stdout
        assert "other slides may have these names now" in shown.stderr
        assert "dataset 'd' was made from were changed" in changed_regions(made, request)[0]
    finally:
        made.put_json(region_set_key("toy"), record)


def test_a_changed_list_of_slides_is_not_believed(made: DirectoryStore) -> None:
    key = f"datasets/d/{SLIDES}"
    before = made.get(key)
    made.put(key, before.replace(PLANTED[0].encode(), PLANTED[1].encode()))
    with pytest.raises(DamagedObjectError, match=r"slides\.json"):
        source_names(made, load_dataset(made, "d"))
    made.put(key, before)


def test_datasets_of_older_versions_keep_their_names(made: DirectoryStore) -> None:
    record = made.get_model(region_set_key("toy"), RegionSet)
    assert {part.slide for part in record.slides} == set(PLANTED[:2])
    request = load_dataset(made, "d").request.model_copy(update={"dataset": "older"})
    assert dataset_pseudonyms(made, request).of("slide", "a").startswith("slide-")
    assert not made.exists(f"datasets/older/{PSEUDONYM_KEY}")


def test_every_picture_says_that_it_is_synthetic(made: DirectoryStore, tmp_path: Path) -> None:
    export_dataset(made, "d", tmp_path, ["folder", "coco", "webdataset", "parquet"])
    for path in [*tmp_path.glob("images/*.png"), *tmp_path.glob("masks/*.png")]:
        mark = parse_mark(Image.open(path).info["XML:com.adobe.xmp"])
        assert mark == Mark("toy/1", "d", path.stem)
        assert b"digitalsourcetype/trainedAlgorithmicMedia" in path.read_bytes()
    shown = Image.open(io.BytesIO(made.get("datasets/d/preview.png"))).info["XML:com.adobe.xmp"]
    mark = parse_mark(shown)
    assert mark is not None
    assert mark.source == "compositeWithTrainedAlgorithmicMedia"
    first = next(read_shard(made.get("datasets/d/shards/000000.tar")))
    exported = (tmp_path / "images" / f"{first.provenance.key}.png").read_bytes()
    assert np.array_equal(decode_png(exported), first.image)


def test_a_mark_changes_no_pixel_and_is_a_valid_chunk() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    plain = encode_png(pixels)
    png = mark_png(plain, Mark('a"<&/1', "d", "0"))
    assert np.array_equal(decode_png(png), pixels)
    assert png == mark_png(plain, Mark('a"<&/1', "d", "0"))
    (length,) = struct.unpack(">I", png[33:37])
    body, check = png[37 : 41 + length], png[41 + length : 45 + length]
    assert struct.unpack(">I", check) == (zlib.crc32(body),)
    assert parse_mark(Image.open(io.BytesIO(png)).info["XML:com.adobe.xmp"]) == Mark(
        'a"<&/1', "d", "0"
    )
    assert parse_mark("<broken") is None
    assert parse_mark('<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>') is None


def test_verify_tells_the_whole_the_changed_and_the_foreign(
    made: DirectoryStore, tmp_path: Path
) -> None:
    export_dataset(made, "d", tmp_path / "out")
    known = Known(made, "d")
    image, mask = (tmp_path / "out" / kind / "00000001.png" for kind in ("images", "masks"))
    for path, what in ((image, "image 00000001"), (mask, "label map 00000001")):
        good, text = verify(path, known)
        assert good, text
        assert f"pixels are those of {what} of d" in text
    assert verify(image).text == (
        "says that it is synthetic (model toy/1, dataset d, image 00000001)"
    )
    assert not verify(image, Known(made, "e")).good

    pixels = np.asarray(Image.open(image)).copy()
    bare, changed, foreign = (tmp_path / f"{name}.png" for name in ("bare", "changed", "foreign"))
    Image.fromarray(pixels).save(bare)
    good, text = verify(bare, known)
    assert not good
    assert text == (
        "does not say that it is synthetic; its pixels are those of image 00000001 of d"
    )
    pixels[0, 0] ^= 1
    changed.write_bytes(mark_png(encode_png(pixels), Mark("toy/1", "d", "00000001")))
    assert verify(changed, known).text.endswith("was changed after it was made")
    Image.fromarray(pixels).save(foreign)
    assert verify(foreign, known).text == "does not say that it is synthetic; is not of d"

    runner = CliRunner()
    where = ["--dataset", "d", "--store", str(made.root)]
    assert runner.invoke(app, ["verify", str(image), str(mask), *where]).exit_code == 0
    assert runner.invoke(app, ["verify", str(image), str(bare), *where]).exit_code == 1
    (tmp_path / "text.png").write_bytes(b"no picture")
    assert runner.invoke(app, ["verify", str(tmp_path / "text.png")]).exit_code == 2


def rows_of(store: DirectoryStore, dataset: str) -> list[dict[str, Any]]:
    table = pq.read_table(io.BytesIO(store.get(f"datasets/{dataset}/manifest.parquet")))
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure distances by a small network."""
    monkeypatch.setattr(gate, "ENCODER", "random")


@pytest.mark.usefixtures("quick")
def test_images_too_near_to_training_regions_are_replaced(made: DirectoryStore) -> None:
    options = {"images": 3, "steps": 1, "shard_size": 2}
    free = synthesize(made, dataset="free", **options, min_distance=1e-6)
    assert free.result is not None
    assert (free.result["refused"], free.result["missing"]) == (0, 0)
    nearest = sorted(row["distance"] for row in rows_of(made, "free"))
    bound = (nearest[0] + nearest[1]) / 2
    status = synthesize(made, dataset="kept", **options, min_distance=bound)
    assert status.result is not None
    rows = rows_of(made, "kept")
    assert all(row["distance"] >= bound for row in rows)
    assert sum(row["refused"] for row in rows) == status.result["refused"] >= 1
    record = load_dataset(made, "kept")
    assert record.refused == status.result["refused"]
    assert len(rows) + record.missing == 3
    card = made.get("datasets/kept/README.md").decode()
    assert f"{record.refused} were made again" in card
    assert not made.exists("datasets/d/training.npz")
    again = synthesize(made, dataset="kept", **options | {"shard_size": 3}, min_distance=bound)
    assert again.state == "done"
    same = ("key", "seed", "refused", "map_region", "crop_regions")
    assert [[row[name] for name in same] for row in rows_of(made, "kept")] == [
        [row[name] for name in same] for row in rows
    ]


@pytest.mark.usefixtures("quick")
def test_a_turned_training_region_has_no_distance(made: DirectoryStore) -> None:
    request = load_dataset(made, "free").request
    context = Context(made, threads=1, device="cpu", report=lambda *_: None)
    own = Gate(request, context)
    regions = RegionIndex(made, load_region_set(made, "toy"), "train")
    image = symmetry(regions[3].image[16:48, 16:48], 5)
    near = own.measure(image, ())
    assert near.distance == pytest.approx(0, abs=0.01)
    assert near.copied is None
    strict = request.model_copy(update={"min_distance": 0.1})
    assert Gate(strict, context).refuses(near)
