"""Measure what synthetic images are worth to a lab with few annotated fields.

    python -m benchmarks.few_fields FIELDS --classes tumour,stroma,normal --mpp 1

FIELDS holds images, each beside its mask of class indices; 0 is unlabelled. The split is drawn
several times. Each time two fields in three are the lab's: `colon` goes on learning on them and
makes images from their maps and crops. Segmenters learn from the fields with and without these
images, and are scored on the other fields. Regions are chosen by the rule of 20 to 80 %.
"""

from __future__ import annotations

import argparse
import glob
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from benchmarks.quality import mean_iou, run_htd
from benchmarks.segmenters import spread
from shared.contracts.evaluate import Report, TrainingSet, report_key

SIZE = 128


def split_fields(folder: Path, out: Path, seed: int) -> dict[str, int]:
    """Copy two fields in three to <out>/train/, the others to <out>/test/; return their numbers."""
    masks = sorted(folder.glob("*.mask.png"))
    count = len(masks) * 2 // 3
    shutil.rmtree(out, ignore_errors=True)
    for place, number in enumerate(np.random.default_rng(seed).permutation(len(masks))):
        target = out / ("train" if place < count else "test")
        target.mkdir(parents=True, exist_ok=True)
        name = masks[number].name.removesuffix(".mask.png")
        for file in folder.glob(f"{glob.escape(name)}.*"):
            shutil.copyfile(file, target / file.name)
    return {"train": count, "test": len(masks) - count}


def main() -> None:
    """Train, make the images, train the segmenters, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", required=True)
    parser.add_argument("--mpp", required=True)
    parser.add_argument("--splits", type=int, default=5, help="number of drawn splits")
    parser.add_argument("--steps", default="400", help="of the denoiser's training")
    parser.add_argument("--images", default="500", help="number of synthetic images")
    parser.add_argument("--out", type=Path, default=Path("out/few-fields"))
    given = parser.parse_args()
    figures: dict[str, Any] = {"date": datetime.now(UTC).date().isoformat()}
    kinds = (TrainingSet.REAL, TrainingSet.SYNTHETIC, TrainingSet.REAL_AND_SYNTHETIC)
    scores: dict[TrainingSet, list[float]] = {kind: [] for kind in kinds}
    classes: dict[TrainingSet, list[dict[str, float | None]]] = {kind: [] for kind in kinds}
    for seed in range(given.splits):
        part = given.out / f"split-{seed}"
        figures["fields"] = split_fields(given.folder, part / "fields", seed)
        fields = quote(str(part / "fields"))
        for command in (
            f"ingest {fields} --cohort fields --classes {quote(given.classes)} --mpp {given.mpp} "
            f"--region-size {SIZE} --region-mpp {given.mpp}",
            "train --regions fields --model fields --recipe cpu-small --warm-start colon "
            "--set recipe.vae.decoder_steps=0 --set recipe.denoiser.views=8 "
            f"--set recipe.denoiser.steps={given.steps}",
            f"synthesize --dataset fields --model fields --images {given.images}",
            "evaluate --dataset fields --report fields",
        ):
            run_htd(command, part / "store")
        file = part / "store" / report_key("fields", "report.json")
        report = Report.model_validate_json(file.read_text())
        for kind in kinds:
            scores[kind].append(mean_iou(report, kind))
            found = report.segmentation[kind]
            classes[kind].append(found.iou if found else {})
        print(json.dumps({"scores": scores, "classes": classes}), flush=True)
    pairs = zip(scores[TrainingSet.REAL_AND_SYNTHETIC], scores[TrainingSet.REAL], strict=True)
    gain = spread([both - real for both, real in pairs])
    figures |= {"scores": scores, "classes": classes, "gain": gain}
    text = json.dumps(figures, indent=1)
    (given.out / "few_fields.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
