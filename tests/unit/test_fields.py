"""Fields: one image of any size, the same whichever strips it is made in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openslide
import pytest
import tifffile
import torch
from rasterio.features import rasterize

from heterotissue.cli.field_maps import choose_map
from heterotissue.names import entries, remove
from services.field.stage import FieldStage
from services.ingest.stage import IngestStage
from shared.contracts.base import Classes
from shared.contracts.field import WORK, FieldRecord, FieldRequest, field_key
from shared.contracts.ingest import IngestRequest, PatchGrid, SlideSource, label_map_key
from shared.contracts.jobs import JobStatus
from shared.contracts.models import ModelRef
from shared.contracts.recipe import VaeRecipe
from shared.contracts.regions import RegionRule
from shared.datasets.exports import geojson_bytes
from shared.datasets.field_inputs import put_crop, put_label_map
from shared.diffusion.autoencoder import make_vae
from shared.diffusion.fixed_norms import PieceDecoder, norm_statistics, with_fixed_norms
from shared.errors import InputError
from shared.imaging import sandboxed_mask
from shared.imaging.label_map import LABEL_TILE, LabelMap, write_label_map
from shared.imaging.marks import Mark, mark_xmp, parse_mark
from shared.imaging.masks import open_mask
from shared.imaging.pyramid import Jpeg, Labels, write_pyramid
from shared.jobs import Ledger, Reporter, run_job
from shared.models import read_model
from shared.settings import Settings
from shared.storage import DirectoryStore
from tests.models import publish_toy_model
from tests.region_sets import CLASSES, make_region_set

WIDTH, HEIGHT = 46, 520
"""The last strip of 512 px is lower than a window of the model, 32 px."""

XMP = mark_xmp(Mark("toy/1", "f"))
LABELS = "maps/map.tif"


def label_map() -> np.ndarray:  # type: ignore[type-arg]
    labels = np.ones((HEIGHT, WIDTH), np.uint8)
    labels[200:, 20:40] = 2
    labels[400:] = 2
    labels[500:, 30:] = 0
    return labels


def put_labels(store: DirectoryStore, labels: np.ndarray, mpp: float = 0.5) -> str:  # type: ignore[type-arg]
    height, width = labels.shape
    strips = (labels[y : y + LABEL_TILE] for y in range(0, height, LABEL_TILE))
    with store.writing(LABELS) as path:
        write_label_map(path, strips, width, height, mpp)
    return LABELS


def make_store(folder: Path) -> DirectoryStore:
    torch.set_num_threads(1)
    store = DirectoryStore(folder)
    publish_toy_model(store, make_region_set(store, splits={"slide-a": "train"}, regions=2))
    put_labels(store, label_map())
    return store


def make(store: DirectoryStore, **fields: Any) -> JobStatus:
    request = FieldRequest.model_validate(
        {
            "field": "f", "model": "toy", "labels": LABELS, "steps": 3, "guidance_map": 1,
            "guidance_crops": 1, **fields,
        }
    )  # fmt: skip
    ledger = Ledger(store)
    job = ledger.submit(request)
    return run_job(ledger, FieldStage(), job, config=Settings(threads=1, device="cpu"))


class Cancelling(Reporter):
    """Cancels a job at the first sign of it, and counts the signs."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.units = ledger, [""]

    def unit(self, job: str, unit: str, done: int, total: int, note: str) -> None:
        self.units.append(unit)
        self.ledger.cancel(job)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DirectoryStore:
    store = make_store(tmp_path_factory.mktemp("fields"))
    assert make(store, strip=512).state == "done"
    assert make(store, field="whole", strip=2048).state == "done"
    return store


def test_strips_of_any_height_give_the_same_bytes(made: DirectoryStore) -> None:
    for name in ("slide.tiff", "labels.tiff"):
        files = [tifffile.TiffFile(made.local(field_key(field, name))) for field in ("f", "whole")]
        for one, other in zip(*(file.pages for file in files), strict=True):
            np.testing.assert_array_equal(one.asarray(), other.asarray())


def test_a_field_is_a_pyramid_with_its_labels_outlines_and_origin(made: DirectoryStore) -> None:
    record = made.get_model(field_key("f", "field.json"), FieldRecord)
    assert (record.width, record.height, record.mpp) == (WIDTH, HEIGHT, 0.5)
    assert record.shares["tumor"] == pytest.approx((label_map() == 2).mean())
    assert [(crop.label, crop.regions) for crop in record.crops] == [(1, "toy"), (2, "toy")]
    with openslide.OpenSlide(made.local(field_key("f", "slide.tiff"))) as slide:
        assert slide.level_dimensions == ((WIDTH, HEIGHT), (WIDTH // 2, HEIGHT // 2))
        assert float(slide.properties[openslide.PROPERTY_NAME_MPP_X]) == pytest.approx(0.5)
    for name in ("slide.tiff", "labels.tiff"):
        page = tifffile.TiffFile(made.local(field_key("f", name))).pages[0]
        assert parse_mark(bytes(page.tags[700].value)) == Mark("toy/1", "f")  # type: ignore[union-attr]
    outlines = json.loads(made.get(field_key("f", "regions.geojson")))["features"]
    names = {name: index for index, name in enumerate(CLASSES.names)}
    drawn = rasterize(
        [(o["geometry"], names[o["properties"]["classification"]["name"]]) for o in outlines],
        (HEIGHT, WIDTH),
    )
    np.testing.assert_array_equal(drawn, label_map())
    assert not list(made.list(WORK)), "what only the work needed is gone"


def test_the_files_of_a_field_are_ingested_with_its_very_label_map(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 3, (9, 10)), np.ones((60, 60))).astype(np.uint8)[:535, :590]
    colors = np.array([[245, 243, 246], [232, 160, 190], [120, 60, 140]])
    image = (colors[labels] + rng.normal(0, 6, (*labels.shape, 1))).clip(0, 255).astype(np.uint8)
    slide, mask = tmp_path / "slide.tiff", tmp_path / "labels.tiff"
    write_pyramid(slide, Jpeg().tiles(image), image.shape, 0.5, Jpeg(), XMP)
    write_pyramid(mask, Labels().tiles(labels), labels.shape, 0.5, Labels(), XMP)
    request = IngestRequest(
        cohort="c",
        slides=(SlideSource(slide="f", source=str(slide), labels=str(mask)),),
        classes=CLASSES,
        patches=PatchGrid(size=64, mpp=0.5, stride=64),
        regions=RegionRule(size=64, mpp=0.5),
    )
    store = DirectoryStore(tmp_path / "store")
    status = run_job(Ledger(store), IngestStage(), Ledger(store).submit(request))
    assert status.state == "done", status.failed
    with LabelMap(store.local(label_map_key("f", "c"))) as found:
        np.testing.assert_array_equal(found.whole(), labels)
    with openslide.OpenSlide(slide) as opened:
        assert opened.level_dimensions == ((590, 535), (295, 267))
        small = np.asarray(opened.read_region((0, 0), 1, (295, 267)))[..., :3]
    assert np.abs(small[15, 15].astype(int) - image[28:34, 28:34].mean((0, 1))).max() < 10


def test_a_cancelled_field_stops_at_the_next_window(made: DirectoryStore) -> None:
    ledger = Ledger(made)
    request = FieldRequest(field="c", model="toy", labels=LABELS, steps=2, guidance_crops=1)
    reporter = Cancelling(ledger)
    config = Settings(threads=1, device="cpu")
    done = run_job(ledger, FieldStage(), ledger.submit(request), reporter=reporter, config=config)
    assert done.state == "cancelled"
    assert reporter.units == ["", "step-000-00000"]
    about = f"{WIDTH}×{HEIGHT} px at 0.5 µm/px, by toy/1"
    listed = {entry.name: (entry.state, entry.about) for entry in entries(made, "fields")}
    assert listed == {"c": ("cancelled", ""), "f": ("done", about), "whole": ("done", about)}
    remove(made, "fields", "c")
    assert [entry.name for entry in entries(made, "fields")] == ["f", "whole"]
    assert not list(made.list(WORK))


@pytest.mark.parametrize("architecture", ["kl", "dc"])
def test_pieces_are_decoded_as_the_whole_is(architecture: Literal["kl", "dc"]) -> None:
    torch.manual_seed(0)
    recipe = VaeRecipe(architecture=architecture, channels=(8, 16), latent_channels=4)
    vae = make_vae(recipe).eval()
    for norm in (part for part in vae.modules() if isinstance(part, torch.nn.GroupNorm)):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias)
    latents = torch.randn((1, 4, 48, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        same = with_fixed_norms(vae, norm_statistics(vae, latents)).decode(latents).sample
        assert (same - vae.decode(latents).sample).abs().max() < 1e-4
        fixed = with_fixed_norms(vae, norm_statistics(vae, latents[:, :, :16, :16]))
        whole = fixed.decode(latents, return_dict=False)[0]
        decoder = PieceDecoder(fixed)
        reach, side = decoder.reach, whole.shape[2] // 48
        rows = latents[:, :, 20 - reach : 24 + reach]
        part = decoder.decode(rows[..., : 10 + reach], (reach, reach, 0, reach))
        own = vae.decode(rows, return_dict=False)[0][:, :, side * reach :]
    assert 0 < reach < 16
    assert part.shape[2:] == (4 * side, 10 * side)
    wanted = whole[:, :, 20 * side : 24 * side]
    assert (part - wanted[..., : 10 * side]).abs().max() < 1e-5
    if architecture == "kl":
        assert (own[:, :, : 4 * side] - wanted).abs().max() > 1e-3, "norms of its own"


@pytest.mark.parametrize(
    ("labels", "mpp", "fields", "said"),
    [
        (np.ones((20, 64), np.uint8), 0.5, {}, "64×20 px, smaller than the images of toy/1"),
        (np.ones((64, 64), np.uint8), 1.0, {}, "at 1 µm/px, but toy/1 makes images at 0.5"),
        (np.full((64, 64), 9, np.uint8), 0.5, {}, "holds 9; the labels of toy/1 are 0 to 2"),
        (np.ones((64, 64), np.uint8), 0.5, {"crops": [2]}, "class 'tumor', which the label map"),
        (label_map(), 0.5, {"crops": [1]}, "no crop is given of 'tumor'"),
        (label_map(), 0.5, {"crops": [1, 1, 2]}, "'stroma' has several crops"),
    ],
)
def test_a_field_that_cannot_be_made_is_refused_before_any_work(
    made: DirectoryStore,
    tmp_path: Path,
    labels: np.ndarray,  # type: ignore[type-arg]
    mpp: float,
    fields: dict[str, Any],
    said: str,
) -> None:
    store = DirectoryStore(tmp_path)
    for key in made.list():
        if key.startswith(("models/", "regions/")):
            store.put(key, made.get(key))
    put_labels(store, labels, mpp)
    model = read_model(store, ModelRef("toy", "1"))
    square = np.zeros((16, 16, 3), np.uint8)
    fields["crops"] = [
        put_crop(store, model.classes.names[n], square, model).model_dump()
        for n in fields.get("crops", ())
    ]
    status = make(store, **fields)
    assert status.state == "failed"
    assert said in next(iter(status.failed.values()))
    assert not list(store.list("fields/f/"))


def test_a_map_that_was_put_for_other_classes_is_refused(
    made: DirectoryStore, tmp_path: Path
) -> None:
    model = read_model(made, ModelRef("toy", "1"))
    other = model.model_copy(update={"classes": Classes.of("tumor", "stroma")})
    np.save(tmp_path / "map.npy", label_map())
    key = put_label_map(made, open_mask(tmp_path / "map.npy"), other)
    status = make(made, field="others", labels=key)
    assert "other classes ('background', 'tumor', 'stroma') than" in status.failed["plan"]
    assert not list(made.list("fields/others/"))


def test_a_field_larger_than_the_disk_is_refused(
    made: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DirectoryStore, "free", lambda self: 1000)
    status = make(made, field="large")
    assert "a field of 46×520 px would take about" in next(iter(status.failed.values()))


def test_inputs_are_checked_by_name(made: DirectoryStore, tmp_path: Path) -> None:
    model = read_model(made, ModelRef("toy", "1"))
    np.save(tmp_path / "map.npy", np.full((64, 64), 7))
    with pytest.raises(InputError, match=r"map\.npy .*\[7\]; the labels of toy/1 are 0 to 2"):
        put_label_map(made, open_mask(tmp_path / "map.npy"), model)
    with pytest.raises(InputError, match="no tissue 'fat'; it knows stroma, tumor"):
        put_crop(made, "fat", np.zeros((16, 16, 3), np.uint8), model)
    with pytest.raises(InputError, match="the crop of 'tumor' has 40×16 px"):
        put_crop(made, "tumor", np.zeros((16, 40, 3), np.uint8), model)


def test_a_map_that_names_its_labels_is_read_by_their_names(
    made: DirectoryStore, tmp_path: Path
) -> None:
    model, file = read_model(made, ModelRef("toy", "1")), tmp_path / "map.tif"
    labels = label_map()

    def put(*names: str) -> np.ndarray:  # type: ignore[type-arg]
        strips = (labels[top : top + LABEL_TILE] for top in range(0, len(labels), LABEL_TILE))
        write_label_map(file, strips, *labels.shape[::-1], model.mpp, names)
        with LabelMap(made.local(put_label_map(made, open_mask(file), model))) as stored:
            assert stored.names == ("background", "stroma", "tumor")
            return stored.whole()

    same = put("other", "Stroma", "tumor")
    np.testing.assert_array_equal(same, labels)
    swapped = put("background", "tumor", "stroma")
    np.testing.assert_array_equal(swapped, np.array([0, 2, 1])[labels])
    turned = put("tumor", "background", "stroma")
    np.testing.assert_array_equal(turned, np.array([2, 0, 1])[labels])
    with pytest.raises(InputError, match=r"labels outside the classes .*\[2 \(fat\)\]"):
        put("background", "stroma", "fat")


@pytest.mark.parametrize(
    "description",
    [
        '{"labels": "abc"}',
        '{"labels": {"0": "background"}}',
        '{"labels": [NaN]}',
        '{"labels": ["\\u001b[31m"]}',
        '{"labels": ["' + "x" * 1000 + '"]}',
        '{"labels": ' + "[" * 100_000,
    ],
)
def test_a_map_whose_names_are_forged_is_refused(
    made: DirectoryStore, tmp_path: Path, description: str
) -> None:
    file, model = tmp_path / "map.tif", read_model(made, ModelRef("toy", "1"))
    tifffile.imwrite(file, label_map(), description=description, metadata=None)
    with pytest.raises(InputError, match=r"map\.tif .*no list of names") as caught:
        put_label_map(made, open_mask(file), model)
    assert len(str(caught.value)) < 300


def test_names_are_found_however_their_json_is_written(
    made: DirectoryStore, tmp_path: Path
) -> None:
    file, model = tmp_path / "map.tif", read_model(made, ModelRef("toy", "1"))
    written = '{"by":"us","labels":["background","tumor","stroma"]}'
    tifffile.imwrite(file, label_map(), description=written, metadata=None)
    mask = sandboxed_mask.open_mask(file)
    with LabelMap(made.local(put_label_map(made, mask, model))) as stored:
        np.testing.assert_array_equal(stored.whole(), np.array([0, 2, 1])[label_map()])


def choose(store: DirectoryStore, **options: Any) -> dict[str, Any]:
    """Read the options of the command line that say what a field's label map is."""
    names = ("labels", "size", "rename", "sample_map", "proportion")
    model = read_model(store, ModelRef("toy", "1"))
    return choose_map(store, model, **(dict.fromkeys(names) | options))


def drawn(store: DirectoryStore, path: Path, **options: Any) -> np.ndarray:  # type: ignore[type-arg]
    chosen = choose(store, labels=str(path), **options)
    with LabelMap(store.local(chosen["labels"])) as labels:
        assert labels.mpp == pytest.approx(0.5)
        return labels.whole()


def test_the_outlines_of_a_field_give_its_very_label_map_back(
    made: DirectoryStore, tmp_path: Path
) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (40, 48)).astype(np.uint8)
    path = tmp_path / "regions.geojson"
    path.write_bytes(geojson_bytes(labels, CLASSES))
    np.testing.assert_array_equal(drawn(made, path, size="48x40"), labels)


def test_outlines_are_drawn_as_those_of_slides(made: DirectoryStore, tmp_path: Path) -> None:
    def feature(name: str, left: float, right: float) -> dict[str, Any]:
        ring = [[left, 10], [right, 10], [right, 30], [left, 30], [left, 10]]
        return {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"classification": {"name": name}},
        }

    path = tmp_path / "a.geojson"
    path.write_text(json.dumps([feature("Tumor", -1, 20), feature("fat", 30, 50)]))
    with pytest.raises(InputError, match=r"a\.geojson has labels that are not .*: 'fat'"):
        choose(made, labels=str(path), size="48X40")
    wanted = np.zeros((40, 48), np.uint8)
    wanted[10:30, :20], wanted[10:30, 30:] = 2, 1
    found = drawn(made, path, size="48×40", rename=["fat=stroma"])
    np.testing.assert_array_equal(found, wanted)
    np.save(tmp_path / "map.npy", np.where(wanted, wanted, 7))
    renamed = drawn(made, tmp_path / "map.npy", rename=["7=background"])
    np.testing.assert_array_equal(renamed, wanted)
    path.write_text(json.dumps([feature("tumor", 100, 200)]))
    with pytest.raises(InputError, match=r"48×40 px from outlines.* 0% of the labelled area"):
        choose(made, labels=str(path), size="48x40")
    exhaustive = read_model(made, ModelRef("toy", "1")).model_copy(
        update={"classes": Classes.of("stroma", "tumor", exhaustive=True)}
    )
    for features in ([], [{"type": "Feature", "geometry": None, "properties": None}]):
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        with pytest.raises(InputError, match=r"a\.geojson has no outline of a class"):
            choose_map(made, exhaustive, str(path), "48x40", None, None, None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "either --labels or --sample-map"),
        ({"labels": "a.png", "sample_map": "64x64"}, "either --labels or --sample-map"),
        ({"labels": "a.geojson"}, "a.geojson holds outlines.*give --size <width>x<height>"),
        ({"labels": "../none.tif"}, r"--labels \.\./none\.tif: there is no such file"),
        ({"labels": "a.xml"}, "a.xml holds outlines"),
        ({"labels": "a.png", "size": "64x64"}, "--size is for outlines"),
        ({"labels": LABELS, "size": "64x64"}, "--size is for outlines"),
        ({"labels": LABELS, "rename": ["fat=tumor"]}, "is a key in the store"),
        ({"labels": "a.geojson", "size": "64"}, "--size '64' must be <width>x<height>"),
        ({"labels": "a.geojson", "size": "64x20"}, "64×20 px, smaller than the images of toy/1"),
        ({"labels": "a.geojson", "size": "64x9999999"}, "at most 1,048,576 px along each side"),
        ({"labels": "a.png", "proportion": ["tumor=1"]}, "--proportion is of a sampled map"),
        ({"sample_map": "64x64", "size": "64x64"}, "--size and --rename"),
        ({"sample_map": "64x64"}, "toy/1 has no layout model"),
        ({"sample_map": "64x-1"}, "--sample-map '64x-1' must be <width>x<height>"),
    ],
)
def test_options_of_a_map_that_do_not_go_together_are_refused(
    made: DirectoryStore, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        choose(made, **options)
