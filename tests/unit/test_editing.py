"""Edits: what lies outside of an area stays; the rest follows map, crops and seed."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import distance_transform_edt, uniform_filter

from heterotissue import cli
from heterotissue.cli.edits import check_out
from heterotissue.edits import Editor
from heterotissue.lesions import LesionPainter, LesionRule, paint_lesions
from shared.contracts.image import Edit
from shared.contracts.models import ModelRef
from shared.contracts.regions import RegionRule, RegionSet, RegionSetSlide, region_set_key
from shared.datasets.field_inputs import put_label_map
from shared.diffusion.appearances import Appearance
from shared.diffusion.crops import Crop
from shared.diffusion.editing import paint, redraw, restain
from shared.diffusion.fields import FieldMap, FieldSampler
from shared.diffusion.model_store import LoadedModel, load_model
from shared.errors import InputError
from shared.imaging.label_map import LabelMap
from shared.imaging.marks import parse_mark
from shared.imaging.masks import INVERSE, ORIENTATION, turned
from shared.imaging.region_sets import RegionIndex, pack_regions, put_regions, region_row
from shared.imaging.sandboxed_mask import open_mask
from shared.imaging.windows import Window
from shared.models import read_model
from shared.settings import settings
from shared.storage import DirectoryStore, sha256
from tests.models import publish_toy_model
from tests.region_sets import make_region_set, texture_region

SIDE, BORDER = 44, 3


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> DirectoryStore:
    torch.set_num_threads(1)
    made = DirectoryStore(tmp_path_factory.mktemp("edits"))
    publish_toy_model(made, make_region_set(made, splits={"slide-a": "train"}, regions=2))
    return made


def picture() -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    image = np.random.default_rng(0).integers(100, 200, (SIDE, SIDE, 3), dtype=np.uint8)
    labels = np.ones((SIDE, SIDE), np.uint8)
    labels[:, SIDE // 2 :] = 2
    return image, labels


def sampler(store: DirectoryStore, labels: np.ndarray, seed: int = 0) -> FieldSampler:  # type: ignore[type-arg]
    model: LoadedModel = load_model(store, ModelRef("toy", "1"), "cpu")
    sampling = model.record.recipe.sampling.model_copy(
        update={"steps": 2, "guidance_map": 1.0, "guidance_crops": 1.0}
    )
    return FieldSampler(model.pipeline, 32, sampling, FieldMap.of(labels), [Appearance({})], seed)


def test_painting_changes_the_area_and_its_border_alone(store: DirectoryStore) -> None:
    image, labels = picture()
    area = np.zeros((SIDE, SIDE), bool)
    area[10:20, 12:25] = True
    painted = paint(sampler(store, labels), image, area, BORDER)
    near = distance_transform_edt(~area) <= BORDER
    np.testing.assert_array_equal(painted[~near], image[~near])
    assert (painted[area] != image[area]).mean() > 0.9
    assert (painted[near & ~area] != image[near & ~area]).any(), "it fades into the picture"
    other, told = sampler(store, labels, seed=1), list[float]()
    other.watch = lambda done, total: told.append(done / total)
    again = paint(other, image, area, BORDER)
    assert told[-1] == 0, "it is decoded"
    assert told[:-1] == sorted(told[:-1])
    assert 0.5 <= told[-2] < 1, "in the second of two steps"
    assert (again[area] != painted[area]).any()


def test_the_less_strength_the_nearer_to_the_picture(store: DirectoryStore) -> None:
    image, labels = picture()
    drawn = [redraw(sampler(store, labels), image, strength, 0.0) for strength in (0.5, 1.0)]
    assert (drawn[0] != drawn[1]).any()
    other = image[::-1].copy()
    from_other = [redraw(sampler(store, labels), other, strength, 0.0) for strength in (0.5, 1.0)]
    differs = [(a != b).mean() for a, b in zip(drawn, from_other, strict=True)]
    assert differs[0] > differs[1], "at strength 1 only the statistics of the picture are left"


def test_a_restained_picture_keeps_its_cells(store: DirectoryStore) -> None:
    image, labels = picture()
    crop = Crop(1, 0, 0, np.full((12, 12, 3), (90, 40, 120), np.uint8))
    work = sampler(store, labels)
    work = FieldSampler(work.pipeline, 32, work.sampling, work.labels, [Appearance.of([crop])], 0)
    drawn, stained = redraw(work, image, 0.5, 0.0), restain(work, image, 0.5, 1.0, [1])
    kept = [np.corrcoef(_detail(made), _detail(image))[0, 1] for made in (drawn, stained)]
    assert kept[1] > 0.9 > 0.5 > kept[0]
    apart = [
        np.abs(made[labels == 1].mean(0) - crop.pixels[0, 0]).mean() for made in (image, stained)
    ]
    assert apart[1] < 0.7 * apart[0]
    inside = distance_transform_edt(labels != 1) > 3
    np.testing.assert_array_equal(stained[inside], image[inside], "a class without a crop stays")


def _detail(image: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return (image - uniform_filter(image.astype(np.float64), (9, 9, 1))).ravel()


def test_what_does_not_fit_the_picture_is_refused(store: DirectoryStore) -> None:
    image, labels = picture()
    with pytest.raises(InputError, match="the area is empty, or lies outside"):
        paint(sampler(store, labels), image, np.zeros((SIDE, SIDE), bool), BORDER)
    with pytest.raises(InputError, match="the area is 3×2 px, but the image is 44×44 px"):
        paint(sampler(store, labels), image, np.ones((2, 3), bool), BORDER)
    with pytest.raises(InputError, match="the label map is 40×44 px, but the image is 44×44 px"):
        redraw(sampler(store, labels[:, :40]), image, 1.0, 0.0)
    with pytest.raises(InputError, match="the label map is 40×44 px, but the image is 44×44 px"):
        restain(sampler(store, labels[:, :40]), image, 1.0, 0.0, [1])
    with pytest.raises(ValueError, match="restain takes no area"):
        Edit(image="a.png", area="b.png", restain=True)


def editor(
    store: DirectoryStore, folder: Path, image: Image.Image, end: str = "png", **options: Any
) -> Editor:
    """Save a picture and a map of 32 × 40 px, whose lower rows are tumor, and open both."""
    path, labels = folder / f"a.{end}", np.ones((32, 40), np.uint8)
    labels[20:] = 2
    image.save(path, **options)
    if not (folder / "map.png").exists():
        Image.fromarray(labels).save(folder / "map.png")
    return Editor(store, ModelRef("toy", "1"), settings(), path, folder / "map.png", {})


def test_a_picture_is_edited_as_it_is_seen(store: DirectoryStore, tmp_path: Path) -> None:
    seen = np.random.default_rng(0).integers(0, 255, (32, 40), dtype=np.uint8)
    grey = np.repeat(seen[..., None], 3, axis=2)
    deep = Image.fromarray(seen.astype(np.uint16) * 257)
    np.testing.assert_array_equal(editor(store, tmp_path, deep).image, grey)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored = turned(grey, INVERSE[6])
    drawn = editor(store, tmp_path, Image.fromarray(stored), exif=exif)
    np.testing.assert_array_equal(drawn.image, grey)
    assert (drawn.labels[20:] == 2).all()
    area = np.zeros((40, 32), np.uint8)
    area[:5, :9] = 255  # of the picture as it is stored
    Image.fromarray(area).save(tmp_path / "area.png")
    np.testing.assert_array_equal(drawn.read_area(tmp_path / "area.png"), turned(area, 6) > 0)


def test_maps_and_areas_are_masks_of_any_kind(store: DirectoryStore, tmp_path: Path) -> None:
    labels = np.ones((32, 40), np.uint8)
    labels[:, 9:] = 2
    model = read_model(store, ModelRef("toy", "1"))
    red = np.zeros((32, 40, 3), np.uint8)
    red[..., 0] = labels
    for array in (red, np.repeat(labels[..., None], 3, axis=2)):
        Image.fromarray(array).save(tmp_path / "map.png")
        key = put_label_map(store, open_mask(tmp_path / "map.png"), model)
        with LabelMap(store.local(key)) as put:
            np.testing.assert_array_equal(put.whole(), labels)
    drawn, inside = editor(store, tmp_path, Image.new("RGB", (40, 32))), labels > 1
    np.testing.assert_array_equal(drawn.labels, labels)
    for array in (
        inside.astype(np.uint16) * 65535,
        np.repeat(inside[..., None], 3, axis=2).astype(np.uint8) * 255,
        inside,
    ):
        Image.fromarray(array).save(tmp_path / "area.png")
        np.testing.assert_array_equal(drawn.read_area(tmp_path / "area.png"), inside)
    indexed = Image.fromarray(inside.astype(np.uint8))
    indexed.putpalette([255, 255, 255, 0, 0, 0])
    indexed.save(tmp_path / "area.png")
    with pytest.raises(InputError, match="1 is black, not 0: save it black and white"):
        drawn.read_area(tmp_path / "area.png")
    Image.fromarray(red * 9).save(tmp_path / "map.png")
    with pytest.raises(InputError, match=r"\[9, 18\]; the labels of toy/1 are 0 to 2: back"):
        put_label_map(store, open_mask(tmp_path / "map.png"), model)


def test_inputs_and_other_formats_are_not_overwritten(tmp_path: Path) -> None:
    inputs = [tmp_path / name for name in ("a.png", "map.png")]
    for path in inputs:
        path.write_bytes(path.name.encode())
    (tmp_path / "link.png").symlink_to(inputs[1])
    check_out([tmp_path / "b.png"], inputs)
    for name, said in (("a.png", "is an input"), ("link.png", "is an input"), ("x.jpg", r"\.png")):
        with pytest.raises(InputError, match=said):
            check_out([tmp_path / name], inputs)


def test_commands_edit_restain_and_vary(
    store: DirectoryStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    image, labels = (array[:32, 10:42] for array in picture())
    area = np.zeros((32, 32), np.uint8)
    area[4:14, 4:14] = 255
    crop = np.full((12, 12, 3), 90, np.uint8)
    for name, array in (("a", image), ("map", labels), ("area", area), ("crop", crop)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HTD_THREADS", "1")
    settings.cache_clear()
    model = ("--model", "toy", "--labels", "map.png", "--store", store.url)

    def htd(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["htd", *words])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0)

    assert htd("edit", "a.png", *model, "--area", "area.png", "--out", "b.png") == 0
    with Image.open("b.png") as edited:
        np.testing.assert_array_equal(np.asarray(edited)[30:], image[30:])
        mark = parse_mark(edited.info["xmp"])
    assert mark is not None
    assert (mark.model, mark.source) == ("toy/1", "compositeWithTrainedAlgorithmicMedia")
    assert htd("restain", "a.png", *model, "--crop", "tumor=crop.png", "--out", "c.png") == 0
    assert htd("vary", "a.png", *model, "--n", "1", "--out", "many") == 0
    assert len(list((tmp_path / "many").glob("a-*.png"))) == 1
    Path("folder.png").mkdir()
    Path("other").mkdir()
    Path("other/a-0001.png").touch()
    for words in (
        ("vary", "a.png", *model, "--n", "1", "--out", "other"),
        ("edit", "a.png", *model, "--area", "area.png", "--out", "a.png"),
        ("edit", "a.png", *model, "--area", "area.png", "--out", "area.png"),
        ("restain", "a.png", *model, "--crop", "tumor=crop.png", "--out", "x.jpg"),
        ("edit", "a.png", *model, "--area", "area.png", "--out", "folder.png"),
        ("pairs", "map.png", "--model", "toy", "--other-labels", "many/first.mask.png"),
    ):
        if words[0] == "pairs":
            Image.fromarray(labels[:, ::-1].copy()).save("many/first.mask.png")
            words += ("--out", "many", "--store", store.url)
        assert htd(*words) == 2
        assert "--out" in capsys.readouterr().err
    np.testing.assert_array_equal(np.asarray(Image.open("a.png")), image)
    twice = ("--crop", "tumor=crop.png", "--crop", "tumor=a.png")
    assert htd("edit", "a.png", *model, "--area", "area.png", *twice, "--out", "d.png") == 2
    assert "class 'tumor' has several crops" in capsys.readouterr().err
    assert not Path("d.png").exists()
    assert htd("restain", "a.png", *model) == 2
    for option in ("--strength", "--staining"):
        capsys.readouterr()
        assert htd("restain", "a.png", *model, "--crop", "tumor=crop.png", option, "nan") == 2
        assert f"{option}: must be a finite number, not nan" in capsys.readouterr().err
    assert htd("restain", "a.png", *model, "--crop", "fat=crop.png") == 2
    assert "toy/1 has no tissue 'fat'; it knows stroma, tumor" in capsys.readouterr().err
    field = ("--model", "toy", "--labels", "area.png", "--store", store.url)
    assert htd("field", *field) == 2
    assert "[255]; the labels of toy/1 are 0 to 2" in capsys.readouterr().err
    before = set(store.list())
    field = ("--model", "toy", "--labels", "map.png", "--store", store.url)
    assert htd("field", *field, "--crop", "tumor=crop.png") == 2
    assert "no crop is given of 'stroma', which the label map holds" in capsys.readouterr().err
    assert {key for key in set(store.list()) - before if "/inputs/" not in key} == set()
    pairs = ("--model", "toy", "--store", store.url, "--n", "1", "--out")
    other = ("--other-crop", "tumor=crop.png")
    assert htd("pairs", "map.png", *pairs, "pairs", *other, "--other-crop", "Tumor=a.png") == 2
    assert "several other crops" in capsys.readouterr().err
    assert htd("pairs", "map.png", *pairs, "pairs", *other) == 0
    first, second = (
        np.asarray(Image.open(f"pairs/0000-{name}.png")) for name in ("first", "second")
    )
    assert (first != second).any()
    assert json.loads(Path("pairs/pairs.json").read_text())["difference"] == {
        "crops": ["tumor"], "map": {},
    }  # fmt: skip
    Image.fromarray(np.minimum(labels + 1, 2)).save("other.png")
    assert htd("pairs", "map.png", *pairs, "maps", "--other-labels", "other.png") == 0
    again = np.asarray(Image.open("maps/0000-first.png"))
    np.testing.assert_array_equal(again, first)
    changed = float((labels == 1).mean())
    assert json.loads(Path("maps/pairs.json").read_text())["difference"] == {
        "crops": [], "map": {"stroma → tumor": pytest.approx(changed, abs=1e-3)},
    }  # fmt: skip
    assert htd("pairs", "map.png", *pairs, "same") == 2
    assert "both sides of the pairs are the same" in capsys.readouterr().err


def test_lesions_are_painted_into_slides_without_them_with_their_pixels_as_labels(
    store: DirectoryStore, tmp_path: Path
) -> None:
    model = load_model(store, ModelRef("toy", "1"), "cpu")
    rule = LesionRule(tissue="Tumor", smallest=0.04, largest=0.2, without="slide", border=2)
    with pytest.raises(InputError, match=r"is of a slide without 'tumor'.*--without region"):
        LesionPainter(store, model, "toy", rule, 0)
    put_plain_slide(store)
    painter = LesionPainter(store, model, "two", rule, 0)
    paint_lesions(painter, 2, tmp_path)
    with (tmp_path / "lesions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["slide"] for row in rows] == ["plain", "plain"]
    for row in rows:
        image, mask, before, old = (
            np.asarray(Image.open(tmp_path / f"{folder}/{row['key']}{end}"))
            for folder in ("painted", "before") for end in (".png", ".mask.png")
        )  # fmt: skip
        lesion = mask == 2
        assert not (old == 2).any()
        np.testing.assert_array_equal(mask[~lesion], old[~lesion])
        assert 0.04 <= lesion.mean() <= 0.2
        assert float(row["share"]) == pytest.approx(lesion.mean(), abs=1e-4)
        far = distance_transform_edt(~lesion) > 2
        np.testing.assert_array_equal(image[far], before[far])
        assert (image[lesion] != before[lesion]).mean() > 0.9
    with pytest.raises(InputError, match="has no tissue 'fat'"):
        LesionPainter(store, model, "two", rule.model_copy(update={"tissue": "fat"}), 0)


def put_plain_slide(store: DirectoryStore) -> None:
    """Write a region set 'two' of the toy's slide, and of a slide without tumor."""
    toy = store.get_model(region_set_key("toy"), RegionSet)
    whole = texture_region("plain_0_0", "plain", 64, np.random.default_rng(0))
    plain = replace(whole, labels=np.minimum(whole.labels, 1))
    regions = {"slide-a": RegionIndex(store, toy, "train")[0], "plain": plain}
    parts = []
    for slide, region in regions.items():
        shares = np.bincount(region.labels.ravel(), minlength=3) / region.labels.size
        row = region_row(region, 0, 0, Window(0, 0, tuple(shares), 0.5), RegionRule(size=64))
        tar = pack_regions([region])
        put_regions(store, "two", slide, [row], tar)
        parts.append(RegionSetSlide(slide=slide, split="train", regions=1, sha256=sha256(tar)))
    copy = toy.model_copy(update={"name": "two", "slides": tuple(parts)})
    store.put_json(region_set_key("two"), copy)
