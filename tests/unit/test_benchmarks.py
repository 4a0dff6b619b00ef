"""The measurements that choices were made by, on toy models."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import guidance, quality
from benchmarks.conditioning import recipe_of
from shared.contracts.base import Split
from shared.contracts.evaluate import (
    Appearance,
    EncoderFigures,
    FidelityRow,
    Leakage,
    PerPatient,
    Report,
    Retrieval,
    SegmentationScores,
    TrainingSet,
)
from shared.contracts.sampling import Sampling
from shared.errors import InputError
from shared.storage import DirectoryStore
from tests.models import publish_toy_model
from tests.region_sets import make_region_set

ALWAYS = {"steps": 1, "guidance_low": 0, "guidance_high": 1}
SETTINGS = (
    Sampling(guidance_map=1, guidance_crops=1, **ALWAYS),
    Sampling(guidance_map=1.5, guidance_crops=1, **ALWAYS),
    Sampling(guidance_map=1.5, guidance_crops=1.5, **ALWAYS),
    Sampling(staining=1, **ALWAYS),
)
SPLITS: dict[str, Split] = {"slide-0": "train", **{f"slide-{n}": "val" for n in range(1, 5)}}


@pytest.mark.parametrize("condition", ["both", "map"])
def test_guidance_is_swept_on_the_val_split(
    condition: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = DirectoryStore(tmp_path)
    publish_toy_model(store, make_region_set(store, splits=SPLITS, size=32, regions=12))
    monkeypatch.setattr(guidance, "SETTINGS", SETTINGS)
    guidance.main(
        [str(tmp_path), "toy", "--encoders", "random", "--condition", condition,
         "--segmenter-steps", "1"]
    )  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    rows = {"both": [0, 1, 2, 3], "map": [0, 2]}[condition]
    heading, *table, real = lines[-2 - len(rows) :]
    assert heading.startswith("guidance_map | guidance_crops | guidance_low | guidance_high | ")
    assert real.startswith("real regions: stain error")
    for row, line in zip(rows, table, strict=True):
        words = [str(value) for value in guidance.asked(SETTINGS[row]).values()]
        evaluations = "1" if row == 0 else "2"
        assert line.split(" | ")[:7] == [*words, evaluations]
        name = f"guidance-toy-1-{condition}-{'-'.join(words).replace('.', '_')}"
        made = store.get_json(f"datasets/{name}/dataset.json")
        assert made["request"]["condition"] == condition
        assert made["request"]["maps"]["splits"] == ["val"]


@pytest.mark.parametrize(
    ("words", "ingested", "trained"),
    [
        ("tiles --mpp 0.5 --slide (.*)", "tiles tiles", ["quality"]),
        ("slides --slides --recipe base", "ingest slides", ["quality"]),
        ("tiles --mpp 0.5 --embedding", "tiles tiles", ["quality", "quality-embedding"]),
        ("tiles --mpp 0.5 --warm-start colon --as-is", "tiles tiles", ["quality"]),
    ],
)
def test_the_way_from_a_folder_to_the_figures_is_one_command(
    words: str, ingested: str, trained: list[str], tmp_path: Path
) -> None:
    common = ["--classes", "gland", "--region-mpp", "0.875", "--out", str(tmp_path)]
    given = quality.arguments([*words.split(), *common])
    first, *trainings, study = [" ".join(command) for command in quality.commands(given)]
    assert first.startswith(f"{ingested} --store {tmp_path}/store --cohort quality")
    assert f"--region-size {224 if 'base' in words else 128}" in first
    assert [command.split("--model ")[1].split()[0] for command in trainings] == trained
    for option in ("--as-is", "--warm-start colon"):
        assert (option in trainings[0]) == (option in words)
    assert study.startswith("study")
    assert ("--embedding quality-embedding" in study) == (len(trained) > 1)


def leak(excess: float, significant: bool) -> Leakage:
    return Leakage.model_construct(excess_copies=excess, significant=significant)


def scores(iou: float) -> SegmentationScores:
    return SegmentationScores.model_construct(mean_iou=iou)


def hits(top1: float | None) -> dict[str, Retrieval]:
    return {"both": Retrieval.model_construct(top1=top1)}


def patients(gain: float) -> PerPatient:
    return PerPatient.model_construct(gain=gain, most=0.9)


def test_of_several_encoders_the_least_favourable_counts() -> None:
    def part(fd: tuple[float, float], own: tuple[float, float], over: float, top1: float | None,
             excess: float, gain: float) -> EncoderFigures:  # fmt: skip
        rows = {
            row: FidelityRow.model_construct(
                frechet=distance, own_slides=near, over_floor=over, recall=distance / 100
            )
            for row, distance, near in zip(("map", "both"), fd, own, strict=True)
        }
        leaks = {"dataset": leak(excess, excess > 0.02), "both": leak(0.0, False)}
        return EncoderFigures.model_construct(
            rows=rows, retrieval=hits(top1), leakage=leaks, per_patient=patients(gain)
        )

    report = Report.model_construct(
        fidelity=(
            part((90, 30), (60, 20), 2.0, 0.5, 0.03, 0.6),
            part((80, 40), (80, 20), 1.5, 0.4, 0.0, 0.45),
        ),
        appearance=Appearance.model_construct(
            stain={"map": 0.3, "both": 0.1},
            retrieval=hits(0.6),
            per_patient=patients(0.9),
            detail={"both": 0.8},
        ),
        segmentation={
            TrainingSet.REAL: scores(0.8),
            TrainingSet.SYNTHETIC: scores(0.76),
            TrainingSet.REAL_AND_SYNTHETIC: scores(0.82),
        },
        faithfulness=scores(0.72),
    )
    found = quality.figures(report)
    assert found == pytest.approx(
        {
            "fd_gain": 2, "fd_gain_own_slides": 3, "fd_over_floor": 2, "iou_synthetic_ratio": 0.95,
            "iou_augmented_gain": 0.02, "stain_gain": 3, "faithfulness_ratio": 0.9,
            "recall": 0.3, "detail": 0.8, "per_patient_gain": 0.5,
            "crop_retrieval_top1": 0.4, "excess_copies": 0.03, "excess_copies_significant": 0.03,
        }
    )  # fmt: skip
    one = (part((90, 30), (60, 20), 2.0, None, 0.01, 0.6),)
    found = quality.figures(report.model_copy(update={"fidelity": one}))
    assert found["crop_retrieval_top1"] is None
    assert (found["excess_copies"], found["excess_copies_significant"]) == (0.01, 0)


def test_conditionings_are_compared_on_a_trained_autoencoder() -> None:
    recipe = recipe_of("cpu-small", "concat", 7)
    assert (recipe.vae.pretrained, recipe.vae.steps, recipe.vae.decoder_steps) == ("embedded", 0, 0)
    assert (recipe.denoiser.conditioning, recipe.denoiser.steps) == ("concat", 7)
    with pytest.raises(InputError, match="'base' trains its own autoencoder"):
        recipe_of("base", "concat", 7)
