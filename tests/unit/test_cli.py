"""The command line: exit codes that scripts can trust, and errors for people."""

from __future__ import annotations

import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.main import get_command

from benchmarks.quality import figures
from heterotissue import cli, doctor
from heterotissue.cli.app import app
from heterotissue.cli.options import changed, parse_proportions
from heterotissue.pipelines import load_pipeline
from heterotissue.recipes import load_recipe
from heterotissue.stages import load_stage
from heterotissue.study import default_encoder
from shared.contracts.base import Split
from shared.contracts.deploy import DeployRequest
from shared.contracts.embed import EmbedRequest, embedded_key
from shared.contracts.evaluate import Report
from shared.contracts.requests import REQUESTS
from shared.contracts.synthesize import DatasetRecord, DatasetRequest, dataset_key
from shared.datasets.pseudonyms import source_names
from shared.datasets.samples import DatasetIndex, load_dataset
from shared.errors import InputError
from shared.jobs import Ledger
from shared.serving.deployments import deployments
from shared.storage import DirectoryStore
from tests.models import publish_toy_model
from tests.region_sets import CLASSES, make_region_set


def htd(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the command line in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["htd", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_every_command_explains_itself_with_an_example() -> None:
    group = get_command(app)
    for command in group.commands.values():  # type: ignore[attr-defined]
        for each in getattr(command, "commands", {"": command}).values():
            assert each.help, each.name
            assert "Example:" in (each.epilog or ""), each.name


def test_every_stage_can_be_loaded() -> None:
    for name, request in REQUESTS.items():
        stage = load_stage(name)
        assert (stage.name, stage.request) == (name, request)
    with pytest.raises(InputError, match="'nothing' is not a stage"):
        load_stage("nothing")


def test_a_deployment_gets_a_number_that_none_waiting_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = DirectoryStore(tmp_path)
    publish_toy_model(store, make_region_set(store))
    Ledger(store).submit(DeployRequest(model="toy", number=1))
    assert htd(monkeypatch, "deploy", "--model", "toy", "--store", str(tmp_path)) == 0
    assert [each.number for each in deployments(store, "toy")] == [2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["embed", "--cohort", "none"], "needs cohorts/none.json"),
        (["embed", "--cohort", "no/name"], "--cohort: may have letters"),
        (["train", "--regions", "none", "--recipe", "huge"], "no recipe 'huge'"),
        (["synthesize", "--model", "m", "--proportion", "tumor"], "must be <class>=<share>"),
        (["jobs", "show", "train-0"], "holds no job 'train-0'"),
        (["ingest", "nowhere.svs"], "nowhere.svs is not there"),
        (["embed", "--set", "seeds=1"], "has no field 'seeds'"),
        (["pipeline", "nowhere.yaml"], "nowhere.yaml is not there"),
        (["stack", "up", "--services", "paint"], "no such services: ['paint']"),
    ],
)
def test_bad_input_ends_with_two_and_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HTD_STORE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "400")
    if words[:2] == ["embed", "--set"]:
        DirectoryStore(tmp_path).put("cohorts/cohort.json", b"{}")
    assert htd(monkeypatch, *words) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert message in shown
    assert "Traceback" not in shown


def test_a_plan_that_is_refused_ends_with_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_region_set(DirectoryStore(tmp_path))
    words = ("--regions", "toy", "--recipe", "tiny", "--store", str(tmp_path))
    assert htd(monkeypatch, "train", *words) == 2
    assert "smaller than the recipe's 128 px" in capsys.readouterr().err


def test_a_failed_job_ends_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_region_set(DirectoryStore(tmp_path))

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("services.train.stage.TrainStage.plan", broken)
    words = ("--regions", "toy", "--recipe", "tiny", "--store", str(tmp_path))
    assert htd(monkeypatch, "train", *words) == 1


def test_recipes_are_valid() -> None:
    sizes = {
        name: load_recipe(name).size for name in ("tiny", "starter", "cpu-small", "base", "paper")
    }
    assert sizes == {"tiny": 128, "starter": 128, "cpu-small": 128, "base": 224, "paper": 512}
    paper = load_recipe("paper").denoiser
    assert (round(paper.crop_min * 512), round(paper.crop_max * 512)) == (50, 200)
    tiny, starter = load_recipe("tiny"), load_recipe("starter")
    assert tiny.vae == starter.vae
    assert tiny.denoiser.channels == starter.denoiser.channels


def test_fields_are_changed_by_dotted_names() -> None:
    request = changed(EmbedRequest(cohort="c"), ["seed=3", "weights=null"])
    assert isinstance(request, EmbedRequest)
    assert request.seed == 3


def test_proportions_are_read() -> None:
    assert parse_proportions(["tumor=0.4", "a=b=0.1"]) == {"tumor": 0.4, "a=b": 0.1}


def test_a_pipeline_is_checked_whole_before_it_starts(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("requests:\n- {stage: embed, cohort: c}\n- {stage: cluster, run: r}\n")
    with pytest.raises(InputError, match=r"request 2 \(cluster\): cohort: is missing"):
        load_pipeline(file)
    file.write_text("requests:\n- {stage: paint}\n")
    with pytest.raises(InputError, match="request 1 has stage 'paint'"):
        load_pipeline(file)
    file.write_text("requests:\n- {stage: embed, cohort: c}\n")
    assert load_pipeline(file) == [EmbedRequest(cohort="c")]


def test_a_study_is_one_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    slides: dict[str, Split] = {f"slide-{n}": "train" if n < 3 else "test" for n in range(6)}
    regions = make_region_set(store, splits=slides)
    publish_toy_model(store, regions)
    publish_toy_model(store, regions, model="vectors", conditioning="embedding")
    words = (
        "study", "--model", "toy", "--name", "s", "--images", "4", "--encoder", "random",
        "--seeds", "1", "--segmenter-steps", "2", "--steps", "1", "--few", "0.4",
        "--embedding", "vectors", "--guidance-map-only", "1.25", "--store", str(tmp_path),
    )  # fmt: skip
    assert htd(monkeypatch, *words) == 0
    report = store.get_json("reports/s/report.json")
    assert report["held_out"]
    rows = report["fidelity"][0]["rows"]
    names = ("none", "map", "crops", "both", "embedding")
    assert {*names, "seen both", "seen embedding", "reconstruction", "floor"} < set(rows)
    made = {}
    for row in names:
        record = load_dataset(store, f"s-{row}")
        index = DatasetIndex(store, record, partial(source_names, store, record))
        made[row] = [index.provenance(number) for number in range(len(index))]
    both = made["both"]
    for row in names:
        alike = [(p.map_region, p.crops, p.seed) for p in made[row]]
        assert alike == [(p.map_region, p.crops, p.seed) for p in both], row
        guidance = 1.25 if row == "map" else 1.75
        assert {p.sampling.guidance_map for p in made[row]} == {guidance}
        assert {p.condition for p in made[row]} == {"both" if row == "embedding" else row}
    assert {p.model for p in made["embedding"]} == {"vectors/1"}
    assert {p.map_slide for p in both} == {"slide-3", "slide-4", "slide-5"}
    assert all(crop.slide == p.map_slide for p in both for crop in p.crops)
    found = figures(Report.model_validate(report))
    assert found["crop_retrieval_top1"] is None  # too few crops to choose among
    assert found["fd_gain"] == rows["map"]["frechet"] / rows["both"]["frechet"]


def test_a_study_that_can_not_be_made_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = DirectoryStore(tmp_path)
    publish_toy_model(store, make_region_set(store, splits={"alone": "train"}))
    words = ("study", "--model", "toy", "--store", str(tmp_path))
    assert htd(monkeypatch, *words) == 2
    assert "no region in its test split" in capsys.readouterr().err
    assert htd(monkeypatch, *words, "--embedding", "toy") == 2
    assert "'regional' conditioning" in capsys.readouterr().err


def test_the_version_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert htd(monkeypatch, "--version") == 0
    assert version("heterotissue") in capsys.readouterr().out


def test_ctrl_c_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> list[object]:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    assert htd(monkeypatch, "doctor") == 130
    assert "run the same command again" in capsys.readouterr().err


def test_the_encoder_of_a_report_follows_the_cohort(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    publish_toy_model(store, make_region_set(store))
    request = DatasetRequest(dataset="d", model="toy", images=1)
    record = DatasetRecord(
        dataset="d", model="toy/1", images=1, size=32, mpp=0.5, classes=CLASSES, proportions={},
        shards=(), request=request,
    )  # fmt: skip
    store.put_json(dataset_key("d", "dataset.json"), record)
    assert default_encoder(store, "d") == "efficientnet-lite0"
    store.put(embedded_key("toy"), b"weights")
    assert default_encoder(store, "d") == "embedded"


@pytest.mark.parametrize("command", ["embed", "cluster"])
def test_tiles_are_not_embedded(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    DirectoryStore(tmp_path).put("tiles/crc/0.parquet", b"")
    assert htd(monkeypatch, command, "--cohort", "crc", "--store", str(tmp_path)) == 2
    assert "htd train --regions crc" in " ".join(capsys.readouterr().err.split())
