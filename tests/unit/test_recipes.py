"""Files that people write: recipes, pipelines, `--set`; a wrong one is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from heterotissue.cli.options import (
    changed,
    parse_classes,
    parse_proportions,
    parse_renames,
)
from heterotissue.pipelines import load_pipeline
from heterotissue.recipes import load_recipe
from shared.contracts.base import Classes
from shared.contracts.cluster import ClusterRequest, default_types
from shared.contracts.embed import EmbedRequest
from shared.contracts.explaining import explain
from shared.contracts.field import PlacedCrop, SampledMap
from shared.contracts.ingest import IngestRequest, SlideSource
from shared.contracts.recipe import DenoiserRecipe, Recipe, VaeRecipe
from shared.contracts.synthesize import MapSource
from shared.contracts.train import TrainRequest
from shared.errors import InputError
from shared.tissue_types import classes_of
from shared.yaml_files import parse_mapping, parse_yaml, read_mapping
from tests.docs.pages import PAGES, blocks

INGEST = IngestRequest(
    cohort="c", slides=(SlideSource(slide="a", source="/a"),), classes=Classes.of("tumor")
)


def bomb() -> str:
    """A document of a few lines whose aliases stand for 10^9 values."""
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for name, of in zip("bcdefghi", "abcdefgh", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{of}'] * 10)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xfe\x00\x80\x81", "r.yaml is not a text file in UTF-8"),
        (b"a: \x00", "r.yaml is not a text file in UTF-8"),
        ("name: x\nsize: 128\nsize: 256", "r.yaml gives 'size' twice, again in line 3"),
        ("vae: {steps: 1, steps: 2}", "gives 'steps' twice, again in line 1"),
        ("[" * 5000, "nested too deeply"),
        ("a: " + "{a: " * 600 + "1" + "}" * 600, "nested too deeply"),
        (bomb(), "r.yaml holds more than 100,000 values"),
        ("a: &a [*a]", "has an alias that holds itself"),
        ("a: [1", r"not valid YAML: expected ',' or ']'.*line 1"),
        ("a: !!python/object:os.system x", "not valid YAML: could not determine a constructor"),
        ("day: !!timestamp x", "holds a value that cannot be read"),
        ("day: 2026-13-01", "holds a value that cannot be read: month must be"),
        ("- 1", "must hold fields, each written as `name: value`, not a list"),
        ("words", "must hold fields, each written as `name: value`, not a text"),
        ("", "must hold fields, each written as `name: value`, not nothing"),
    ],
)
def test_a_file_that_is_no_mapping_is_named_with_the_reason(
    data: bytes | str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as stopped:
        parse_mapping(data, "r.yaml")
    assert "\n" not in str(stopped.value)


def test_aliases_and_merges_are_read() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]"
    both = {"x": 1, "y": 2}
    assert parse_yaml(text, "f") == {"a": both, "b": {"x": 1, "y": 3}, "c": [both, both]}


def test_a_folder_and_a_missing_file_are_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder or a device: give a YAML file"):
        read_mapping(tmp_path)
    with pytest.raises(InputError, match=r"x.yaml is not there"):
        read_mapping(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name: r\nvea: {steps: 1}",
            "recipe .*r.yaml: vea: there is no such field: did you mean vae",
        ),
        ("name: r\nvae: {stesp: 1}", "vae.stesp: there is no such field: did you mean steps?"),
        (
            "name: r\nsteps: 1",
            "steps: there is no such field: did you mean vae.steps or denoiser.s",
        ),
        ("name: r\nvae: tiny", "vae: must hold fields, each written as `name: value`, not 'tiny'"),
        ("name: r\nsize: 16", "size: must be greater than or equal to 32, not 16"),
        ("name: r\nsize: 40", r"size 40 must be a multiple of 32: the autoencoder makes 8 pixels"),
        ("name: r\nvae: {channels: [0]}", r"vae.channels.0: must be greater than or equal to 1"),
        ("name: r\nprecision: fp8", "precision: must be 'fp32' or 'bf16', not 'fp8'"),
        ("size: 64", "name: is missing"),
        ("name: my recipe", "name: may have letters.*'my recipe' has a space"),
        ("name: r\ndenoiser: {learning_rate: .nan}", "denoiser.learning_rate: must be"),
        ("{name: r, a: 1, b: 1, c: 1, d: 1, e: 1, f: 1, g: 1}", r"a, b, c, d, e and 2 more: there"),
    ],
)
def test_a_wrong_recipe_is_named_with_its_field(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        load_recipe(str(file))


def test_an_untrained_model_is_not_published() -> None:
    def made(warm_start: str | None = None, vae: int = 5, denoiser: int = 5) -> TrainRequest:
        recipe = Recipe(
            name="r",
            vae=VaeRecipe(steps=vae, architecture="dc", channels=(48, 96, 192), latent_channels=16),
            denoiser=DenoiserRecipe(steps=denoiser),
        )
        return TrainRequest(run="r", regions="c", recipe=recipe, model="m", warm_start=warm_start)

    with pytest.raises(ValidationError, match="so the autoencoder would stay untrained"):
        made(vae=0)
    assert made(vae=0, warm_start="starter").recipe.vae.steps == 0
    assert made(denoiser=0).recipe.denoiser.steps == 0  # an autoencoder alone
    assert made(denoiser=0, warm_start="starter").recipe.denoiser.steps == 0
    for decoder_steps in (0, 5):
        vae = VaeRecipe(pretrained="embedded", decoder_steps=decoder_steps)
        ready = Recipe(name="r", vae=vae, denoiser=DenoiserRecipe(steps=0))
        with pytest.raises(ValidationError, match="so an untrained denoiser would be published"):
            TrainRequest(run="r", regions="c", recipe=ready, model="m")
    alone = TrainRequest(run="r", regions="c", recipe=load_recipe("autoencoder"), model="m")
    assert (alone.warm_start, alone.recipe.denoiser.steps) == (None, 0)


PIPELINES: list[tuple[str, str]] = [
    ("request:\n- {stage: embed}", "no such field: 'request': did you mean requests"),
    ("{}", "needs a list `requests`"),
    ("requests: {stage: embed}", "needs a list `requests`"),
    ("requests: [embed]", "request 1 must hold fields, such as `stage: embed`, not 'embed'"),
    ("requests: [{cohort: c}]", "request 1 has stage 'None'; there are ingest, embed"),
    ("requests: [{stage: embedd, cohort: c}]", "request 1 has stage 'embedd': did you mean embed?"),
    (
        "requests:\n- {stage: embed, cohort: c}\n- {stage: embed, cohrt: c}",
        r"request 2 \(embed\): cohort: is missing; cohrt: there is no such field: did you mean coh",
    ),
    (
        "requests: [{stage: train, run: r, regions: c, model: m, recipe: huge}]",
        r"request 1 \(train\): no recipe 'huge'",
    ),
    (
        "requests: [{stage: train, run: r, regions: c, model: m, recipe: {name: r, siez: 3}}]",
        r"request 1 \(train\): recipe.siez: there is no such field: did you mean size?",
    ),
]


@pytest.mark.parametrize(("text", "message"), PIPELINES)
def test_a_wrong_pipeline_is_named_with_request_and_field(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=rf"study\.yaml.*{message}"):
        load_pipeline(file)


def test_recipes_of_a_pipeline_are_names_or_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("name: own\nsize: 64\nvae: {steps: 3}")
    train = "{stage: train, run: r, regions: c, model: m, recipe: %s}"
    file = tmp_path / "study.yaml"
    file.write_text(f"requests:\n- {train % 'tiny'}\n- {train % 'own.yaml'}")
    tiny, own = load_pipeline(file)
    assert isinstance(tiny, TrainRequest)
    assert isinstance(own, TrainRequest)
    assert (tiny.recipe, own.recipe.size) == (load_recipe("tiny"), 64)


def test_the_samples_of_the_pages_can_be_read(tmp_path: Path) -> None:
    samples = [block for page in PAGES for block in blocks(page, "yaml")]
    pipelines = [block.text for block in samples if block.text.startswith("requests:")]
    recipes = [block.text for block in samples if block.text.startswith("name:")]
    assert pipelines
    assert recipes
    file = tmp_path / "sample.yaml"
    for text, load in [(each, load_pipeline) for each in pipelines] + [  # type: ignore[list-item]
        (each, lambda path: load_recipe(str(path))) for each in recipes
    ]:
        read: Callable[[Path], Any] = load
        file.write_text(text)
        assert read(file)


def test_a_set_field_may_be_a_key_that_is_not_there_yet() -> None:
    made = changed(INGEST, ["label_names._0=tumor", "label_names.a.b=tumor", "label_names.7=tumor"])
    assert isinstance(made, IngestRequest)
    assert made.label_names == {"_0": "tumor", "a.b": "tumor", "7": "tumor"}
    recipe = Recipe(name="r", vae=VaeRecipe(steps=1))
    train = TrainRequest(run="r", regions="c", recipe=recipe, model="m", warm_start="models/t/1")
    student = "recipe.denoiser.student.sampling_steps=2"
    made = changed(train, ["recipe.vae.steps=0", student])
    assert made.recipe.denoiser.student.sampling_steps == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("cohort=[1", r"--set cohort=\[1 is not valid YAML"),
        ("cohort", "--set cohort must be <field>=<value>"),
        ("label_nams._0=a", "ingest has no field 'label_nams._0': did you mean label_names?"),
        ("regions.lwo=0.1", "ingest has no field 'regions.lwo': did you mean low?"),
        ("low=0.1", "ingest has no field 'low': did you mean regions.low?"),
        ("cohort.name=a", "ingest has no field 'cohort.name'"),
        ("slides.0.mpp=1", "ingest has no field 'slides.0.mpp'"),
        ("regions.low=2", "--set regions.low=2: must be less than or equal to 1, not 2"),
        ("regions.low=0.9", r"--set regions.low=0.9: regions: low \(0.9\) is above high \(0.8\)"),
        ("cohort=a b", "--set cohort=a b: may have letters.*has a space"),
        ("split.seed=-1", "--set split.seed=-1: must be greater than or equal to 0, not -1"),
    ],
)
def test_a_wrong_set_names_the_item(change: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        changed(INGEST, [change])


def test_names_of_classes_differ_in_more_than_spelling() -> None:
    for names in (("Tumor", "tumor"), ("in_situ", "in-situ"), ("In Situ", "in-situ"), ("a", "a")):
        with pytest.raises(ValidationError, match="class names must differ"):
            Classes.of(*names)
    with pytest.raises(ValidationError, match=r"'other' \(class 0\) and 'Other' \(class 1\)"):
        Classes.of("Other", exhaustive=True)
    for name in ("a\nb", " a", "\u200b", ""):
        with pytest.raises(ValidationError):
            Classes.of(name)
    assert Classes.of("CD4", "CD4-", "肿瘤", "Gleason 3+4").names[3] == "肿瘤"
    types = default_types(2)
    types[2] = types[2].model_copy(update={"name": "Type 1"})
    with pytest.raises(InputError, match="tissue types: class names must differ"):
        classes_of(types)


def test_renames_lead_to_classes() -> None:
    classes = Classes.of("tumor", "in situ")
    items = ["_0=tumor", "a=b=In_Situ", "7 = tumor"]
    assert parse_renames(items, classes) == {"_0": "tumor", "a=b": "in situ", "7": "tumor"}


def test_what_is_given_twice_or_is_empty_is_refused() -> None:
    classes = Classes.of("tumor", "stroma")
    with pytest.raises(InputError, match="'_0' is renamed twice"):
        parse_renames(["_0=tumor", "_0=stroma"], classes)
    with pytest.raises(InputError, match="the share of 'tumor' is given twice"):
        parse_proportions(["tumor=0.1", "tumor=0.4"])
    for text in ("tumor,,stroma", "tumor,"):
        with pytest.raises(InputError, match="has an empty name, class 2"):
            parse_classes(text)
    with pytest.raises(InputError, match="class names must differ"):
        parse_classes("tumor,Tumor")
    with pytest.raises(InputError, match="names 'Other', which class 0 is already"):
        parse_classes("tumor,Other", exhaustive=True)
    for first, exhaustive in (("background", True), ("Other", False), ("void", False)):
        with pytest.raises(InputError, match=r"begins with .* which would be class 1: class 0 is"):
            parse_classes(f"{first},tumor,stroma", exhaustive=exhaustive)
    assert list(parse_classes("tumor,other").names) == ["background", "tumor", "other"]
    twice = ["regions.low=0.1", "regions.low=0.2"]
    with pytest.raises(InputError, match=r"would undo --set regions\.low=0\.1"):
        changed(INGEST, twice)
    with pytest.raises(InputError, match=r"would undo --set regions\.low=0\.1"):
        changed(INGEST, [twice[0], "regions={size: 64}"])
    renamed = INGEST.model_copy(update={"label_names": {"_0": "tumor"}})
    with pytest.raises(InputError, match="would undo what another option gave for label_names"):
        changed(renamed, ["label_names={_1: tumor}"])
    assert changed(renamed, ["label_names._1=tumor"]).label_names == {"_0": "tumor", "_1": "tumor"}


def test_numbers_of_yaml_are_names_of_labels() -> None:
    assert changed(INGEST, ["label_names={1: tumor, 255: tumor}"]).label_names == {
        "1": "tumor", "255": "tumor",
    }  # fmt: skip
    with pytest.raises(InputError, match="True is neither text nor a whole number"):
        changed(INGEST, ["label_names={on: tumor}"])


def test_errors_say_what_was_given() -> None:
    with pytest.raises(ValidationError) as stopped:
        EmbedRequest(cohort="c" * 200, seed=-1, batch_size=0)
    assert explain(stopped.value) == (
        "cohort: must have at most 128 characters, not 200; "
        "batch_size: must be greater than or equal to 1, not 0; "
        "seed: must be greater than or equal to 0, not -1"
    )
    with pytest.raises(ValidationError, match="first_k"):
        ClusterRequest(run="r", cohort="c", k=4, first_k=5)


@pytest.mark.parametrize(
    ("made", "place"),
    [
        (lambda: SampledMap(width=True, height=64), "width"),
        (lambda: SampledMap(width=64, height=64, proportions={"a": True}), "proportions.a"),
        (lambda: PlacedCrop(label=1, pixels="k", at=(False, 0.5)), "at.0"),
        (lambda: ClusterRequest(run="r", cohort="c", encoder="e", k=True), "k"),
        (lambda: MapSource.model_validate({"augment": True, "regions": True}), "regions"),
    ],
)
def test_true_is_no_number(made: Callable[[], object], place: str) -> None:
    with pytest.raises(ValidationError) as error:
        made()
    assert explain(error.value).startswith(f"{place}: must be a valid")
    assert MapSource.model_validate({"augment": True}).augment
