"""Train a model on tiles with masks or annotated slides, and measure the method's quality.

    python benchmarks/quality.py TILES --classes gland --mpp 0.5 --slide 'patient(\\d+)' \\
        --region-mpp 0.875 --recipe cpu-small --out out/quality
    python benchmarks/quality.py TILES … --warm-start colon --as-is    # the shipped model
    python benchmarks/quality.py SLIDES --slides --classes stroma,tumor --region-mpp 0.5

Runs `htd tiles` or `htd ingest`, then `htd train` and `htd study`, and writes `quality.json` to
--out. After an interruption, the same command continues. Guidance and steps were chosen on the
val split (docs/log.md); nothing is tuned on the test split.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from heterotissue.recipes import load_recipe
from shared.contracts.evaluate import Report, TrainingSet, report_key

HTD = Path(sys.executable).parent / "htd"


def run_htd(command: str, store: Path) -> None:
    """Run an `htd` command, quoted as for a shell, on a store. Raises if it fails."""
    subprocess.run([HTD, *shlex.split(command), "--store", str(store)], check=True)


def figures(report: Report) -> dict[str, float | None]:
    """Summarize the report of a study; where encoders differ, the least favourable one counts.

    Raises:
        ValueError: the report lacks a figure.
    """
    looks, faithful = report.appearance, report.faithfulness
    if looks is None or faithful is None:
        raise ValueError(f"report {report.report!r} lacks appearance or faithfulness")
    rows = [part.rows for part in report.fidelity]
    measured = (looks.retrieval, *(part.retrieval for part in report.fidelity))
    top1 = [retrieval["both"].top1 for retrieval in measured]
    real, synthetic, augmented = (
        mean_iou(report, source)
        for source in (TrainingSet.REAL, TrainingSet.SYNTHETIC, TrainingSet.REAL_AND_SYNTHETIC)
    )
    distances = [looks.per_patient, *(part.per_patient for part in report.fidelity)]
    gains = [part.gain / part.most for part in distances if part is not None]
    recalls = [row["both"].recall for row in rows]
    leaks = [row for part in report.fidelity for row in part.leakage.values()]
    return {
        "fd_gain": min(row["map"].frechet / row["both"].frechet for row in rows),
        "fd_gain_own_slides": min(
            _known(row["map"].own_slides) / _known(row["both"].own_slides) for row in rows
        ),
        "fd_over_floor": max(_known(row["both"].over_floor) for row in rows),
        "iou_synthetic_ratio": synthetic / real,
        "iou_augmented_gain": augmented - real,
        "stain_gain": looks.stain["map"] / looks.stain["both"],
        "faithfulness_ratio": faithful.mean_iou / real,
        "recall": None if None in recalls else min(map(_known, recalls)),
        "detail": looks.detail.get("both"),
        # of the most that real images of the same patients reach over those of others
        "per_patient_gain": min(gains) if len(gains) == len(distances) else None,
        "crop_retrieval_top1": None if None in top1 else min(map(_known, top1)),
        "excess_copies": max(row.excess_copies for row in leaks),
        # above 0 by chance alone in every second measurement of an honest generator
        "excess_copies_significant": max(
            row.excess_copies if row.significant else 0.0 for row in leaks
        ),
    }


def mean_iou(report: Report, source: TrainingSet) -> float:
    """Return the mean IoU of the segmenters of a training set.

    Raises:
        ValueError: it was not measured.
    """
    scores = report.segmentation[source]
    return _known(scores.mean_iou if scores else None)


def _known(value: float | None) -> float:
    if value is None:
        raise ValueError("a figure of the report was not measured")
    return value


def commands(given: argparse.Namespace) -> Iterator[list[str]]:
    """Yield the arguments of each `htd` command, in the order in which they run."""

    def words(*first: str, **options: str | None) -> list[str]:
        found = [*first, "--store", str(given.out / "store")]
        for name, value in options.items():
            if value is not None:
                found += [f"--{name.replace('_', '-')}", value]
        return found

    yield words(
        "ingest" if given.slides else "tiles", str(given.folder), cohort="quality",
        classes=given.classes, mpp=given.mpp, slide=given.slide,
        region_size=given.region_size or str(load_recipe(given.recipe).size),
        region_mpp=given.region_mpp,
    )  # fmt: skip
    yield words(
        "train", *(["--as-is"] if given.as_is else []), regions="quality", model="quality",
        recipe=given.recipe, warm_start=given.warm_start,
    )  # fmt: skip
    if given.embedding:
        yield words(
            "train", regions="quality", model="quality-embedding", recipe=given.recipe,
            set="recipe.denoiser.conditioning=embedding",
        )  # fmt: skip
    yield words(
        "study", model="quality", name="quality", images=given.images,
        guidance_map_only=given.guidance_map_only,
        embedding="quality-embedding" if given.embedding else None,
    )  # fmt: skip


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slides", action="store_true", help="it holds slides, not tiles")
    parser.add_argument("--classes", required=True)
    parser.add_argument("--mpp", help="of the tiles, or of slides that state none")
    parser.add_argument("--slide", help="regular expression of a tile's slide or patient")
    parser.add_argument("--region-size", help="in pixels; default: the recipe's")
    parser.add_argument("--region-mpp", required=True)
    parser.add_argument("--recipe", default="cpu-small")
    parser.add_argument("--warm-start", help="checkpoint or model that the training starts from")
    parser.add_argument("--as-is", action="store_true", help="measure the warm start, untrained")
    parser.add_argument(
        "--embedding",
        action="store_true",
        help="train a model of embeddings too, for the row map + embedding: as long again",
    )
    parser.add_argument("--guidance-map-only", help="of the row of maps alone, found on val")
    parser.add_argument("--images", default="3000", help="of the dataset segmenters train on")
    parser.add_argument("--out", type=Path, default=Path("out/quality"))
    return parser.parse_args(words)


def main() -> None:
    given = arguments()
    for words in commands(given):
        subprocess.run([HTD, *words], check=True)
    file = given.out / "store" / report_key("quality", "report.json")
    report = Report.model_validate_json(file.read_text())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    result = {
        "figures": figures(report),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {gpu or platform.processor() or 'CPU'}",
        "recipe": given.recipe,
        "n": {"test": report.real_test.regions, "train": report.real_train.regions},
        "report": report.model_dump(mode="json"),
    }
    (given.out / "quality.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["figures"], indent=1))


if __name__ == "__main__":
    main()
