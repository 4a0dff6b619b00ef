"""From a folder of tiles and masks to the figures that say what the method is worth.

    python benchmarks/quality.py TILES --classes gland --mpp 0.5 --slide 'patient(\\d+)' \\
        --region-size 128 --region-mpp 0.875 --recipe cpu-small --out out/quality

Runs `htd tiles`, `htd train` and `htd study`, which a killed run takes up where it was, and
writes `quality.json` beside the report. Guidance and steps were found on the val split
(docs/model.md); nothing here is tuned on the test split.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HTD = Path(sys.executable).parent / "htd"


def figures(report: dict[str, Any]) -> dict[str, float | None]:
    """Sum a study's report up; of several encoders the least favourable counts."""
    fidelity, looks, scores = report["fidelity"], report["appearance"], report["segmentation"]
    rows = [part["rows"] for part in fidelity]
    found = [each["retrieval"]["both"]["top1"] for each in (looks, *fidelity)]
    real = scores["real"]["mean_iou"]
    return {
        "fd_gain": min(row["map"]["frechet"] / row["both"]["frechet"] for row in rows),
        "fd_gain_own_slides": min(
            row["map"]["own_slides"] / row["both"]["own_slides"] for row in rows
        ),
        "fd_over_floor": max(row["both"]["over_floor"] for row in rows),
        "iou_synthetic_ratio": scores["synthetic"]["mean_iou"] / real,
        "iou_augmented_gain": scores["both"]["mean_iou"] - real,
        "stain_gain": looks["stain"]["map"] / looks["stain"]["both"],
        "faithfulness_ratio": report["faithfulness"]["mean_iou"] / real,
        "crop_retrieval_top1": None if None in found else min(found),
        "excess_copies": max(
            row["excess_copies"] for part in fidelity for row in part["leakage"].values()
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tiles", type=Path)
    parser.add_argument("--classes", required=True)
    parser.add_argument("--mpp", required=True)
    parser.add_argument("--slide", help="regular expression of a tile's slide or patient")
    parser.add_argument("--region-size", default="128")
    parser.add_argument("--region-mpp", required=True)
    parser.add_argument("--recipe", default="cpu-small")
    parser.add_argument("--images", default="3000", help="of the dataset segmenters train on")
    parser.add_argument("--out", type=Path, default=Path("out/quality"))
    given = parser.parse_args()
    store = ["--store", str(given.out / "store")]
    slide = ["--slide", given.slide] if given.slide else []

    def htd(*arguments: str) -> None:
        subprocess.run([HTD, *arguments, *store], check=True)

    htd(
        "tiles", str(given.tiles), "--cohort", "quality", "--classes", given.classes,
        "--mpp", given.mpp, "--region-size", given.region_size, "--region-mpp", given.region_mpp,
        *slide,
    )  # fmt: skip
    htd("train", "--regions", "quality", "--model", "quality", "--recipe", given.recipe)
    htd("study", "--model", "quality", "--name", "quality", "--images", given.images)
    report = json.loads((given.out / "store/reports/quality/report.json").read_text())
    result = {
        "figures": figures(report),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {platform.processor() or 'CPU'}",
        "recipe": given.recipe,
        "n": {"test": report["real_test"]["regions"], "train": report["real_train"]["regions"]},
        "report": report,
    }
    (given.out / "quality.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["figures"], indent=1))


if __name__ == "__main__":
    main()
