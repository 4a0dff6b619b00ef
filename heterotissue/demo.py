"""The demo: the whole pipeline from slides to a report, on this machine in minutes."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from heterotissue.cli.cohorts import tell
from heterotissue.progress import console
from heterotissue.sources import find_slides, slide_sources
from shared.contracts.base import Classes, Request, SplitFractions
from shared.contracts.cluster import ClusterRequest, cluster_key
from shared.contracts.embed import EmbedRequest
from shared.contracts.evaluate import EvaluateRequest, Report, TrainingSet, report_key
from shared.contracts.ingest import IngestRequest, PatchGrid, SlideSource
from shared.contracts.recipe import Recipe
from shared.contracts.regions import RegionRule
from shared.contracts.synthesize import DatasetRequest, dataset_key
from shared.contracts.train import TrainRequest
from shared.phantom import PHANTOM_CLASSES, write_phantom
from shared.storage import Store

NAME = "demo"
TYPES = "demo-types"
PHANTOMS = 6
PHANTOM_SEED = 1000
PHANTOM_SIDE = 4096
IMAGES = 64
MPP = 1.0
TISSUE_TYPES = 8
TRAINING_SETS = {
    TrainingSet.REAL: "real",
    TrainingSet.SYNTHETIC: "synthetic",
    TrainingSet.REAL_AND_SYNTHETIC: "both",
}
"""Segmenters in the summary, by their training set, and the words for that set."""


@dataclass(frozen=True)
class DemoSlides:
    """The slides of the demo, and the classes of their annotations (None: no annotations)."""

    sources: tuple[SlideSource, ...]
    classes: Classes | None


def demo_slides(
    store: Store, out: Path, folder: Path | None, classes: list[str] | None, mpp: float | None
) -> DemoSlides:
    """Find the user's slides, or make phantoms.

    Args:
        store: receives the slides.
        out: folder of the demo.
        folder: folder of the user's slides; None: make phantoms.
        classes: class names of the slides' annotations; None: the slides have no annotations.
        mpp: µm per pixel, which overrides what the slides state.

    Raises:
        InputError: `folder` has no slide, or two slides would have the same name.
    """
    if folder is None:
        folder = out / "slides"
        for seed in range(PHANTOM_SEED, PHANTOM_SEED + PHANTOMS):
            if not (folder / f"phantom-{seed}.xml").is_file():
                write_phantom(folder, f"phantom-{seed}", PHANTOM_SIDE, PHANTOM_SIDE, seed)
                console.print(f"phantom: phantom-{seed}.tiff")
        annotated: Classes | None = PHANTOM_CLASSES
    else:
        annotated = Classes.of(*classes) if classes else None
    slides = find_slides([folder])
    sources = slide_sources(store, slides, use_labels=annotated is not None, mpp=mpp)
    tell(sources.notes, sources.refused)
    return DemoSlides(sources.slides, annotated)


def run_demo(slides: DemoSlides, recipe: Recipe, run: Callable[[Request], None]) -> None:
    """Run all stages of the pipeline.

    If the slides have no annotations, the model is trained on tissue types from clustering.

    Args:
        slides: the slides of the demo.
        recipe: recipe of the model.
        run: runs one request to its end.
    """
    rule = RegionRule(size=recipe.size, mpp=MPP, max_per_slide=200)
    run(
        IngestRequest(
            cohort=NAME,
            slides=slides.sources,
            classes=slides.classes,
            patches=PatchGrid(size=64, mpp=MPP, stride=32),
            regions=rule,
            split=SplitFractions(test=0.33),
        )
    )
    run(EmbedRequest(cohort=NAME))
    run(
        ClusterRequest(
            run=TYPES, cohort=NAME, k=TISSUE_TYPES, sample_per_slide=500, classifier_steps=150,
            regions=rule,
        )
    )  # fmt: skip
    regions = NAME if slides.classes else TYPES
    run(TrainRequest(run=NAME, regions=regions, recipe=recipe, model=NAME, warm_start="starter"))
    run(DatasetRequest(dataset=NAME, model=NAME, images=IMAGES, exports=("folder",)))
    run(EvaluateRequest(report=NAME, dataset=NAME, segmenter_steps=80, segmenter_batch=8))


def collect(store: Store, out: Path) -> None:
    """Copy the dataset, the report and the pictures from the store into the folder `out`."""
    folder = dataset_key(NAME, "exports/folder/")
    wanted = [(key, f"dataset/{key.removeprefix(folder)}") for key in store.list(folder)]
    wanted.append((dataset_key(NAME, "manifest.parquet"), "dataset/manifest.parquet"))
    wanted.append((cluster_key(TYPES, "gallery.png"), "tissue_types.png"))
    wanted += [(report_key(NAME, n), n) for n in ("sheet.png", "report.html", "report.json")]
    shutil.rmtree(out / "dataset", ignore_errors=True)
    for key, name in wanted:
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(store.local(key), target)


def summary(out: Path, timings: dict[str, float], total: float) -> Table:
    """Make a table of the time of each stage, the main figures, and the files.

    Args:
        out: folder that `collect` has filled.
        timings: stage → seconds.
        total: seconds of the whole demo.
    """
    table = Table(title="Demo", show_header=False, title_justify="left")
    for stage, seconds in timings.items():
        table.add_row(stage, f"{seconds:.0f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    table.add_row("all", f"{total:.0f} s, {peak:.1f} GiB at most")
    for name, figure in headline(Report.model_validate_json((out / "report.json").read_text())):
        table.add_row(name, figure)
    for name in ("dataset/images", "dataset/masks", "sheet.png", "tissue_types.png", "report.html"):
        table.add_row("", str(out / name))
    return table


def headline(report: Report) -> list[tuple[str, str]]:
    """Return the main figures of a report as rows of a table: (title, value)."""
    rows = [("tested on", "held-out slides" if report.held_out else "TRAINING slides (no other)")]
    for part in report.fidelity:
        if part.rows:
            rows.append(
                (
                    f"Fréchet distance, {part.encoder}, n {part.n}",
                    f"{part.rows['dataset'].frechet:.2f} "
                    f"(real against real: {part.rows['floor'].frechet:.2f})",
                )
            )
    for source, name in TRAINING_SETS.items():
        if scores := report.segmentation.get(source):
            rows.append((f"DeepLabV3+ trained on {name}", f"mean IoU {scores.mean_iou:.3f}"))
    if report.faithfulness:
        rows.append(("label faithfulness", f"mean IoU {report.faithfulness.mean_iou:.3f}"))
    return rows
