"""The demo: the whole pipeline from slides to a report, on this machine in minutes."""

from __future__ import annotations

import html
import resource
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from heterotissue.cli.cohorts import tell
from heterotissue.progress import say
from heterotissue.sources import find_slides, slide_sources
from shared.contracts.base import Classes, Request, SplitFractions
from shared.contracts.cluster import ClusterRequest, cluster_key
from shared.contracts.embed import EmbedRequest
from shared.contracts.evaluate import EvaluateRequest, Report, TrainingSet, report_key
from shared.contracts.ingest import IngestRequest, PatchGrid, SlideSource, slide_key
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
PHANTOM_SIDE = 3072
SHARE_TEXTURES = 3
"""Number of phantoms with the same textures, whose drawing takes most of a phantom's time."""

IMAGES = 64
FIRST_PICTURE = "appearances.png"
MPP = 1.0
TISSUE_TYPES = 8
TRAINING_SETS = {
    TrainingSet.REAL: "real",
    TrainingSet.SYNTHETIC: "synthetic",
    TrainingSet.REAL_AND_SYNTHETIC: "both",
}
"""Segmenters in the summary, by their training set, and the words for that set."""


@dataclass(frozen=True)
class Effort:
    """How much is computed.

    Attributes:
        regions: largest number of regions per slide.
        stride: pixels between patches.
        embed_steps, classifier_steps, segmenter_steps: training steps of these networks.
        training: share of the recipe's steps in which the model is trained.
    """

    regions: int = 200
    stride: int = 32
    embed_steps: int = 400
    classifier_steps: int = 150
    segmenter_steps: int = 80
    training: float = 1.0


PHANTOM_EFFORT = Effort(100, 64, 100, 60, 40, 0.5)
"""Enough to see every stage: the starter has learnt from phantoms already."""


@dataclass(frozen=True)
class DemoSlides:
    """The slides of the demo, their classes (None: no annotations), and the effort for them."""

    sources: tuple[SlideSource, ...]
    classes: Classes | None
    effort: Effort


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
        for number in range(PHANTOMS):
            name, seed = f"phantom-{PHANTOM_SEED + number}", PHANTOM_SEED + number
            textures = PHANTOM_SEED + number // SHARE_TEXTURES
            if not (folder / f"{name}.xml").is_file():
                write_phantom(folder, name, PHANTOM_SIDE, PHANTOM_SIDE, seed, textures=textures)
                say(f"phantom: {name}.tiff")
        annotated: Classes | None = PHANTOM_CLASSES
        effort = PHANTOM_EFFORT
    else:
        annotated = Classes.of(*classes) if classes else None
        effort = Effort()
    slides = find_slides([folder])
    sources = slide_sources(store, slides, use_labels=annotated is not None, mpp=mpp)
    tell(sources.notes, sources.refused)
    return DemoSlides(sources.slides, annotated, effort)


def run_demo(slides: DemoSlides, recipe: Recipe, run: Callable[[Request], None]) -> None:
    """Run all stages of the pipeline.

    If the slides have no annotations, the model is trained on tissue types from clustering.

    Args:
        slides: the slides of the demo.
        recipe: recipe of the model.
        run: runs one request to its end.
    """
    effort = slides.effort
    rule = RegionRule(size=recipe.size, mpp=MPP, max_per_slide=effort.regions)
    run(
        IngestRequest(
            cohort=NAME,
            slides=slides.sources,
            classes=slides.classes,
            patches=PatchGrid(size=64, mpp=MPP, stride=effort.stride),
            regions=rule,
            split=SplitFractions(test=0.33),
        )
    )
    run(EmbedRequest(cohort=NAME, train_steps=effort.embed_steps))
    run(
        ClusterRequest(
            run=TYPES, cohort=NAME, k=TISSUE_TYPES, sample_per_slide=500,
            classifier_steps=effort.classifier_steps, regions=rule,
        )
    )  # fmt: skip
    regions = NAME if slides.classes else TYPES
    made = shortened(recipe, effort.training)
    run(TrainRequest(run=NAME, regions=regions, recipe=made, model=NAME, warm_start="starter"))
    run(DatasetRequest(dataset=NAME, model=NAME, images=IMAGES, exports=("folder",)))
    steps = effort.segmenter_steps
    run(EvaluateRequest(report=NAME, dataset=NAME, segmenter_steps=steps, segmenter_batch=8))


def shortened(recipe: Recipe, share: float) -> Recipe:
    """Return a recipe with a share of its denoiser's training steps."""
    denoiser = recipe.denoiser.model_copy(update={"steps": round(recipe.denoiser.steps * share)})
    return recipe.model_copy(update={"denoiser": denoiser})


def collect(store: Store, slides: DemoSlides, out: Path) -> None:
    """Copy the dataset, the report and the pictures from the store into the folder `out`."""
    folder = dataset_key(NAME, "exports/folder/")
    wanted = [(key, f"dataset/{key.removeprefix(folder)}") for key in store.list(folder)]
    wanted.append((dataset_key(NAME, "manifest.parquet"), "dataset/manifest.parquet"))
    wanted.append((slide_key(slides.sources[0].folder, "thumbnail.png"), "slide.png"))
    wanted.append((cluster_key(TYPES, "gallery.png"), "tissue_types.png"))
    wanted.append((dataset_key(NAME, "preview.png"), "dataset.png"))
    wanted += [(report_key(NAME, n), n) for n in ("sheet.png", "report.html", "report.json")]
    shutil.rmtree(out / "dataset", ignore_errors=True)
    for key, name in wanted:
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if store.exists(key):  # a slide that was refused has no thumbnail
            shutil.copyfile(store.local(key), target)
    report = Report.model_validate_json((out / "report.json").read_text())
    (out / "index.html").write_text(index_page(out, report), encoding="utf-8")


SECTIONS = (
    ("Tissue from painted maps", FIRST_PICTURE,
     "The shipped model paints six drawn label maps as tissue: each row has the appearance of the "
     "crops on its left."),
    ("1. Slides", "slide.png",
     "The slides were searched for tissue and cut into patches, and into regions if they have "
     "annotations."),
    ("2. Tissue types", "tissue_types.png",
     "An encoder learnt from the patches, and clustering found these types without any label."),
    ("3. Model and dataset", "dataset.png",
     "A small model learnt the regions in minutes, and made images from label maps and crops."),
    ("4. Nearest real images", "sheet.png",
     "Each synthetic image is shown with its map, its crops, and the real image that is most "
     "like it."),
)  # fmt: skip
"""Title, picture and sentence of each step, in the order of the pipeline."""


def index_page(out: Path, report: Report) -> str:
    """Write the page that shows what the demo made; it leaves out pictures that are not there."""
    parts = [
        f"<h2>{title}</h2><p>{text}</p><img src='{picture}' alt='{title}'>"
        for title, picture, text in SECTIONS
        if (out / picture).is_file()
    ]
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(text)}</td></tr>"
        for name, text in headline(report)
    )
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>HeteroTissue: demo</title>"
        "<style>body{font:16px sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}"
        "img{max-width:100%}td{padding:.2rem 1rem .2rem 0}</style><h1>HeteroTissue: demo</h1>"
        f"{''.join(parts)}<h2>5. Report</h2><p>The images were measured against held-out real "
        f"regions: <a href='report.html'>the report</a>.</p><table>{rows}</table><h2>6. Files</h2>"
        "<p>The dataset lies in <a href='dataset/'>dataset/</a>: images, masks, and the origin "
        "of each.</p></html>"
    )


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
    table.add_row("look at", str(out / "index.html"))
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
