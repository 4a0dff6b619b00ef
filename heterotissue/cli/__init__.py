"""`htd`: the command line."""

from __future__ import annotations

import functools
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import yaml
from pydantic import TypeAdapter, ValidationError
from rich.table import Table

from heterotissue import remote, sources
from heterotissue.cli.encoders import encoders
from heterotissue.progress import console
from heterotissue.submit import Target, end, report, run_and_report, run_or_fail
from shared.computing import prepare
from shared.contracts.base import Classes, Request, explain
from shared.contracts.cluster import ClusterRequest
from shared.contracts.deploy import DeployRequest
from shared.contracts.embed import EmbedRequest
from shared.contracts.evaluate import EvaluateRequest, report_key
from shared.contracts.ingest import IngestRequest, PatchGrid
from shared.contracts.jobs import JobStatus
from shared.contracts.models import ModelRecord, ModelRef
from shared.contracts.recipe import Recipe, StudentRecipe
from shared.contracts.regions import RegionRule, RegionSet, region_set_key
from shared.contracts.requests import REQUESTS
from shared.contracts.sampling import GuidanceScale
from shared.contracts.synthesize import CropSource, DatasetRequest, ExportFormat, MapSource
from shared.contracts.train import TrainRequest
from shared.device import choose_device
from shared.errors import HeteroTissueError, InputError, JobError
from shared.jobs import Ledger
from shared.logging import configure_logging
from shared.models import read_model
from shared.serving.deployments import next_number
from shared.settings import settings
from shared.storage import ObjectStore

R = TypeVar("R", bound=Request)

app = typer.Typer(
    help="Heterogeneous histopathology images with their annotations, made from your slides.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
jobs_app = typer.Typer(help="Look at jobs, cancel them, try failed ones again.")
stack_app = typer.Typer(help="Redis, S3, workers and the gateway on this machine, no Docker.")
app.add_typer(jobs_app, name="jobs", no_args_is_help=True)
app.add_typer(stack_app, name="stack", no_args_is_help=True)

StoreOption = Annotated[
    str | None, typer.Option("--store", help="A directory or s3://bucket/prefix [HTD_STORE].")
]
BrokerOption = Annotated[
    str | None,
    typer.Option("--broker", help="redis:// URL: run on the workers [HTD_BROKER_URL]."),
]
ServerOption = Annotated[
    str | None,
    typer.Option("--server", help="Address of a gateway: run there, with the token in HTD_TOKEN."),
]
StepsOption = Annotated[int | None, typer.Option("--steps", min=1, help="Default: the model's.")]
GuidanceMapOption = Annotated[
    float | None, typer.Option("--guidance-map", help="Default: the model's.")
]
GuidanceCropsOption = Annotated[
    float | None, typer.Option("--guidance-crops", help="Default: the model's.")
]
StainingOption = Annotated[
    float | None,
    typer.Option("--staining", help="How far regions are stained as their crops are, 0–1."),
]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Do it all again, even if done.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a field, e.g. --set regions.low=0.1 (repeatable)."),
]


def example(text: str) -> str:
    """Format a command's example for its help."""
    return f"[dim]Example:[/] {text}"


@app.command(epilog=example("htd phantom slides/ --count 4 --side 8192"))
def phantom(
    folder: Annotated[Path, typer.Argument(help="Where the slides go.")],
    count: Annotated[int, typer.Option(min=1)] = 1,
    side: Annotated[int, typer.Option(help="Width and height in pixels at 0.5 µm.")] = 4096,
    seed: Annotated[int, typer.Option(help="Of the first slide; the next ones follow.")] = 0,
    threads: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Write H&E-like phantom slides with their exact ground truth."""
    from shared.phantom import write_phantom

    for number in range(count):
        made = write_phantom(folder, f"phantom-{seed + number}", side, side, seed + number, threads)
        labels = ", ".join(path.name for path in (made.mask, made.geojson, made.xml))
        console.print(f"{made.slide}  (labels: {labels})")


@app.command(epilog=example("htd ingest slides/ --cohort lung --classes stroma,tumor --mpp 0.5"))
def ingest(
    slides: Annotated[list[Path], typer.Argument(help="Slides, or folders of slides.")],
    cohort: Annotated[str, typer.Option(help="Name of the cohort.")] = "cohort",
    classes: Annotated[
        str | None, typer.Option(help="Class names in the order of their indices, from 1.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Folder of annotations; default: beside the slides.")
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(help="µm per pixel of slides that state none.")
    ] = None,
    region_size: Annotated[int, typer.Option(help="Side of a region in pixels.")] = 256,
    region_mpp: Annotated[float, typer.Option(help="µm per pixel of regions.")] = 0.5,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Leave the files where they are.")
    ] = False,
    store: StoreOption = None,
    broker: BrokerOption = None,
    fresh: FreshOption = False,
    change: SetOption = None,
) -> None:
    """Ingest slides: tissue, label maps, patch index, training regions.

    Annotations are found by name: <slide>.geojson, <slide>.xml, <slide>_mask.tiff.
    """
    target = Target.of(store, broker)
    found = sources.prepare(
        target.store,
        sources.find_slides(slides),
        labels=labels,
        use_labels=classes is not None,
        mpp=mpp,
        in_place=in_place,
    )
    request = IngestRequest(
        cohort=cohort,
        slides=found,
        classes=Classes.of(*parse_names(classes)) if classes else None,
        patches=PatchGrid(size=region_size // 2, mpp=region_mpp, stride=region_size // 4),
        regions=RegionRule(size=region_size, mpp=region_mpp),
    )
    run_and_report(target, changed(request, change), fresh=fresh)


@app.command(epilog=example("htd tiles crc/ --classes gland --mpp 0.5 --slide 'patient(\\d+)'"))
def tiles(
    folder: Annotated[Path, typer.Argument(help="Tiles, in folders train/, val/, test/ or not.")],
    classes: Annotated[
        str, typer.Option(help="Class names in the order of their indices, from 1.")
    ],
    mpp: Annotated[float, typer.Option(help="µm per pixel of the tiles.")],
    cohort: Annotated[str, typer.Option(help="Name of the cohort.")] = "cohort",
    masks: Annotated[
        Path | None, typer.Option(help="Folder of masks; default: beside the tiles.")
    ] = None,
    slide: Annotated[
        str | None,
        typer.Option(help="Regular expression; its first group is a tile's slide or patient."),
    ] = None,
    region_size: Annotated[int, typer.Option(help="Side of a region in pixels.")] = 256,
    region_mpp: Annotated[
        float | None, typer.Option(help="µm per pixel of regions; default: that of the tiles.")
    ] = None,
    store: StoreOption = None,
    broker: BrokerOption = None,
    fresh: FreshOption = False,
    change: SetOption = None,
) -> None:
    """Ingest tiles that were cut elsewhere, with their masks, as training regions.

    Masks are found by name: <tile>.mask.png, <tile>_mask.png. They hold class indices; or,
    below a folder with the name of a class, that class wherever they are not black. What is
    in no class is the class 0, other tissue.
    """
    target = Target.of(store, broker)
    kinds = Classes.of(*parse_names(classes), exhaustive=True)
    request = IngestRequest(
        cohort=cohort,
        tiles=sources.prepare_tiles(
            target.store, cohort, folder, masks=masks, classes=kinds, slide_pattern=slide, mpp=mpp
        ),
        classes=kinds,
        regions=RegionRule(
            size=region_size, mpp=region_mpp or mpp, low=0, high=1, min_classes=1, min_tissue=0,
            count_background=True, overlap=0, max_per_slide=10_000,
        ),
    )  # fmt: skip
    run_and_report(target, changed(request, change), fresh=fresh)


@app.command(epilog=example("htd embed --cohort lung --encoder hoptimus0"))
def embed(
    cohort: Annotated[str, typer.Option(help="Name of the cohort.")] = "cohort",
    encoder: Annotated[
        str, typer.Option(help="'embedded', a registry key, a timm name or hf-hub:owner/name.")
    ] = "embedded",
    weights: Annotated[Path | None, typer.Option(help="Local weights file.")] = None,
    imported: Annotated[
        Path | None, typer.Option("--import", help="Folder of TRIDENT/CLAM .h5 files to take.")
    ] = None,
    store: StoreOption = None,
    broker: BrokerOption = None,
    fresh: FreshOption = False,
    change: SetOption = None,
) -> None:
    """Embed a cohort's patches, or take features that were made elsewhere."""
    target = Target.of(store, broker)
    if imported is not None:
        from shared.features import import_features

        record = import_features(target.store, cohort, encoder, imported)
        console.print(f"embed: [green]imported[/] {sum(record.slides.values())} features")
        return
    request = EmbedRequest(
        cohort=cohort, encoder=encoder, weights=str(weights.resolve()) if weights else None
    )
    run_and_report(target, changed(request, change), fresh=fresh)


app.command(epilog=example("htd encoders"))(encoders)


@app.command(epilog=example("htd cluster --cohort lung --run types --k 20"))
def cluster(
    run: Annotated[
        str, typer.Option(help="Name of the clustering and of its region set.")
    ] = "types",
    cohort: Annotated[str, typer.Option(help="Name of the cohort.")] = "cohort",
    encoder: Annotated[str, typer.Option(help="Whose features.")] = "embedded",
    k: Annotated[int, typer.Option(help="Number of tissue types.", min=2, max=255)] = 100,
    region_size: Annotated[int, typer.Option(help="Side of a region in pixels.")] = 256,
    region_mpp: Annotated[float, typer.Option(help="µm per pixel of regions.")] = 0.5,
    store: StoreOption = None,
    broker: BrokerOption = None,
    fresh: FreshOption = False,
    change: SetOption = None,
) -> None:
    """Find tissue types, map them onto the slides, and cut regions.

    Edit clusters/<run>/types.yaml to name or merge types, then run this with --fresh.
    """
    request = ClusterRequest(
        run=run,
        cohort=cohort,
        encoder=encoder,
        k=k,
        regions=RegionRule(size=region_size, mpp=region_mpp),
    )
    run_and_report(Target.of(store, broker), changed(request, change), fresh=fresh)


@app.command(epilog=example("htd train --regions lung --recipe tiny --warm-start starter"))
def train(
    regions: Annotated[str, typer.Option(help="Region set: a cohort or a clustering.")],
    model: Annotated[str, typer.Option(help="Name of the model.")] = "model",
    version: Annotated[str, typer.Option(help="Version to publish.")] = "1",
    recipe: Annotated[
        str, typer.Option(help="tiny, cpu-small, base, paper, or a YAML file.")
    ] = "tiny",
    warm_start: Annotated[
        str | None,
        typer.Option(help="starter, colon, colon-student (shipped), or models/<name>/<version>."),
    ] = None,
    as_is: Annotated[
        bool, typer.Option("--as-is", help="Publish the warm start without training it.")
    ] = False,
    seed: int = 0,
    store: StoreOption = None,
    broker: BrokerOption = None,
    fresh: FreshOption = False,
    change: SetOption = None,
) -> None:
    """Train a model on a region set's train split, and publish it."""
    if as_is and warm_start is None:
        raise InputError("--as-is publishes a warm start: say which by --warm-start")
    known = load_recipe(recipe)
    request = TrainRequest(
        run=f"{model}-{version}",
        regions=regions,
        recipe=known.untrained() if as_is else known,
        model=model,
        version=version,
        warm_start=warm_start,
        seed=seed,
    )
    run_and_report(Target.of(store, broker), changed(request, change), fresh=fresh)


@app.command(epilog=example("htd distill --model lung/2 --into lung-fast"))
def distill(
    model: Annotated[str, typer.Option(help="The teacher: <name> or <name>/<version>.")],
    into: Annotated[str, typer.Option(help="Name of the student.")],
    sampling_steps: Annotated[int, typer.Option(help="In which it makes an image.")] = 4,
    teacher_steps: Annotated[int, typer.Option(help="For each of the student's.")] = 5,
    steps: Annotated[int, typer.Option(help="Of training.")] = 1000,
    learning_rate: float = 1e-4,
    store: StoreOption = None,
    broker: BrokerOption = None,
    fresh: FreshOption = False,
    change: SetOption = None,
) -> None:
    """Train a student that makes a model's images in few steps, without guidance."""
    target = Target.of(store, broker)
    teacher = published(target.store, model)
    student = StudentRecipe(
        sampling_steps=sampling_steps,
        teacher_steps=teacher_steps,
        guidance=GuidanceScale.model_validate(
            teacher.recipe.sampling.model_dump(include=set(GuidanceScale.model_fields))
        ),
    )
    own = {"student": student, "steps": steps, "learning_rate": learning_rate}
    recipe = teacher.recipe.model_copy(
        update={
            "vae": teacher.recipe.untrained().vae,
            "denoiser": teacher.recipe.denoiser.model_copy(update=own),
        }
    )
    request = TrainRequest(
        run=f"{into}-1",
        regions=teacher.regions,
        recipe=recipe,
        model=into,
        warm_start=f"models/{teacher.model}/{teacher.version}",
    )
    run_and_report(target, changed(request, change), fresh=fresh)


@app.command(epilog=example("htd deploy --model lung/2"))
def deploy(
    model: Annotated[str, typer.Option(help="<name> or <name>/<version>.")],
    engine: Annotated[str, typer.Option(help="pytorch or tensorrt.")] = "pytorch",
    device: Annotated[str, typer.Option(help="cpu or cuda: what Triton computes on.")] = "cpu",
    store: StoreOption = None,
    broker: BrokerOption = None,
) -> None:
    """Serve a model version on Triton from now on; going back is the same command."""
    target = Target.of(store, broker)
    ref = ModelRef.parse(model)
    request = DeployRequest.model_validate(
        {
            "model": ref.name, "version": ref.version, "engine": engine, "device": device,
            "number": next_number(Ledger(target.store), ref.name),
        }
    )  # fmt: skip
    run_and_report(target, request)


app.command("publish", hidden=True, deprecated=True, epilog=example("htd deploy --model lung/2"))(
    deploy
)  # its name until 0.1


@app.command(epilog=example("htd synthesize --model lung --images 1000 --proportion tumor=0.4"))
def synthesize(
    model: Annotated[str, typer.Option(help="<name> or <name>/<version>.")],
    dataset: Annotated[str, typer.Option(help="Name of the dataset.")] = "dataset",
    images: Annotated[int, typer.Option(min=1)] = 64,
    proportion: Annotated[
        list[str] | None, typer.Option(help="class=share of labelled pixels (repeatable).")
    ] = None,
    maps: Annotated[str | None, typer.Option(help="Region set that maps come from.")] = None,
    crops: Annotated[str | None, typer.Option(help="Region set that crops come from.")] = None,
    steps: StepsOption = None,
    guidance_map: GuidanceMapOption = None,
    guidance_crops: GuidanceCropsOption = None,
    staining: StainingOption = None,
    seed: int = 0,
    export: Annotated[
        list[str] | None, typer.Option(help="folder, coco, geojson (repeatable).")
    ] = None,
    store: StoreOption = None,
    broker: BrokerOption = None,
    server: ServerOption = None,
    fresh: FreshOption = False,
    change: SetOption = None,
) -> None:
    """Make a dataset of synthetic images with their label maps."""
    ref = ModelRef.parse(model)
    request = DatasetRequest(
        dataset=dataset,
        model=ref.name,
        version=ref.version,
        images=images,
        proportions=parse_proportions(proportion or []),
        maps=MapSource(regions=maps),
        crops=CropSource(regions=crops),
        steps=steps,
        guidance_map=guidance_map,
        guidance_crops=guidance_crops,
        staining=staining,
        seed=seed,
        exports=export_formats(export or []),
    )
    asked = changed(request, change)
    if server is None:
        run_and_report(Target.of(store, broker), asked, fresh=fresh)
    elif fresh or store or broker:
        raise InputError("--server goes with none of --store, --broker and --fresh")
    else:
        with remote.connect(server) as client:
            end(remote.make_dataset(client, asked))


@app.command(epilog=example("htd evaluate --dataset dataset --report first"))
def evaluate(
    dataset: Annotated[str, typer.Option(help="Name of the dataset.")] = "dataset",
    name: Annotated[str, typer.Option("--report", help="Name of the report.")] = "report",
    encoder: Annotated[
        list[str] | None,
        typer.Option(help="Encoder of the Fréchet distance; default 'embedded' (repeatable)."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 1,
    store: StoreOption = None,
    broker: BrokerOption = None,
    fresh: FreshOption = False,
    change: SetOption = None,
) -> None:
    """Measure a dataset against held-out real regions."""
    target = Target.of(store, broker)
    request = EvaluateRequest(
        report=name, dataset=dataset, encoders=tuple(encoder or ["embedded"]), seeds=seeds
    )
    run_and_report(target, changed(request, change), fresh=fresh)
    console.print(f"report: {target.store.local(report_key(name, 'report.html'))}")


@app.command(epilog=example("htd study --model lung --encoder efficientnet-lite0 --seeds 3"))
def study(
    model: Annotated[str, typer.Option(help="<name> or <name>/<version>.")],
    name: Annotated[str, typer.Option(help="Name of the study and its report.")] = "study",
    images: Annotated[int, typer.Option(help="Of the dataset to train segmenters on.")] = 1000,
    encoder: Annotated[
        list[str] | None,
        typer.Option(help="Of the Fréchet distances; default: ImageNet's two (repeatable)."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Segmenters of each kind.")] = 3,
    segmenter_steps: Annotated[int, typer.Option(min=1)] = 300,
    few: Annotated[float, typer.Option(help="Share of real regions of the low-label rows.")] = 0.1,
    steps: StepsOption = None,
    guidance_map: GuidanceMapOption = None,
    guidance_crops: GuidanceCropsOption = None,
    staining: StainingOption = None,
    guidance_map_only: Annotated[
        float | None, typer.Option(help="Of the row of maps alone; default: as the others.")
    ] = None,
    embedding: Annotated[
        str | None,
        typer.Option(help="A model with `embedding` conditioning, for the row map + embedding."),
    ] = None,
    seed: int = 0,
    store: StoreOption = None,
    broker: BrokerOption = None,
) -> None:
    """The whole measurement of a model: what map and crops are worth, usefulness, leakage."""
    from heterotissue.study import MEASURES
    from heterotissue.study import study as requests

    target = Target.of(store, broker)
    record = published(target.store, model)
    compared = published(target.store, embedding) if embedding else None
    if compared is not None and compared.recipe.denoiser.conditioning != "embedding":
        raise InputError(
            f"{embedding} is a model with {compared.recipe.denoiser.conditioning!r} conditioning: "
            "train one with --set recipe.denoiser.conditioning=embedding"
        )
    regions = target.store.get_model(region_set_key(record.regions), RegionSet)
    tested = sum(part.regions for part in regions.of_split("test"))
    if not tested:
        raise InputError(
            f"region set {record.regions!r} has no region in its test split: there is nothing to "
            "measure on"
        )
    evaluate = EvaluateRequest(
        report=name,
        dataset=name,
        encoders=tuple(encoder or MEASURES),
        seeds=seeds,
        segmenter_encoder=MEASURES[0],
        segmenter_steps=segmenter_steps,
        few=few,
    )
    for request in requests(
        name,
        record.ref,
        regions=tested,
        images=images,
        evaluate=evaluate,
        sampling={
            "steps": steps,
            "guidance_map": guidance_map,
            "guidance_crops": guidance_crops,
            "staining": staining,
            "seed": seed,
        },
        map_only={} if guidance_map_only is None else {"guidance_map": guidance_map_only},
        embedding=compared.ref if compared else None,
    ):
        run_or_fail(target, request)
    console.print(f"report: {target.store.local(report_key(name, 'report.html'))}")


@app.command(epilog=example("htd estimate --model lung --images 1000000 --size 512 --tflops 400"))
def estimate(
    model: Annotated[str, typer.Option(help="<name> or <name>/<version>.")],
    images: Annotated[int, typer.Option(min=1)] = 1_000_000,
    size: Annotated[int | None, typer.Option(help="Pixels; default: the model's.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images made at a time.")] = 16,
    tflops: Annotated[
        float | None,
        typer.Option(help="Sustained TFLOP/s of another device, as its benchmark found."),
    ] = None,
    store: StoreOption = None,
) -> None:
    """What a dataset will cost, measured on one batch on this machine."""
    from heterotissue.estimate import estimate as measure
    from shared.diffusion.model_store import load_model

    target = Target.of(store, "")
    device = choose_device(target.config)
    sampler = load_model(target.store, ModelRef.parse(model), device)
    prepare(target.config.threads)
    cost = measure(sampler, size or sampler.record.size, batch)
    hours = images * cost.seconds / 3600
    rows = {
        "denoiser": f"{cost.evaluations} evaluations per image",
        "work": f"{cost.flops / 1e9:,.1f} GFLOP per image, {images * cost.flops:.3g} FLOP in all",
        f"on this {device}": f"{1 / cost.seconds:,.2f} images/s: {hours:,.1f} hours",
        "storage": f"{images * cost.stored / 1e9:,.1f} GB, {cost.stored:,} bytes per image",
    }
    if tflops:
        rows[f"at {tflops:g} TFLOP/s"] = f"{images * cost.flops / tflops / 3.6e15:,.1f} hours"
    for title, text in rows.items():
        console.print(f"{title:<20}{text}", highlight=False)


@app.command(epilog=example("htd pipeline study.yaml --store s3://bucket"))
def pipeline(
    file: Annotated[Path, typer.Argument(help="YAML with a list of `requests`.")],
    store: StoreOption = None,
    broker: BrokerOption = None,
) -> None:
    """Run many requests in order, from one file; all are checked before the first starts."""
    target = Target.of(store, broker)
    for request in load_pipeline(file):
        run_or_fail(target, request)


@app.command(epilog=example("htd export dataset out/dataset"))
def export(
    dataset: Annotated[str, typer.Argument(help="Name of the dataset.")],
    folder: Annotated[Path, typer.Argument(help="Where the files go.")],
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="folder, coco, geojson.")
    ] = None,
    store: StoreOption = None,
) -> None:
    """Write a dataset as plain files."""
    from shared.datasets.exports import export_dataset

    export_dataset(
        Target.of(store, None).store, dataset, folder, export_formats(formats or ["folder"])
    )
    console.print(f"dataset: {folder}")


@app.command(epilog=example("htd demo --out out/demo --slides my-slides/ --mpp 0.5"))
def demo(
    out: Annotated[Path, typer.Option(help="Where results go.")] = Path("out/demo"),
    slides: Annotated[
        Path | None, typer.Option(help="A folder with your slides; else phantoms are made.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Class names of your slides' annotations, from 1.")
    ] = None,
    mpp: Annotated[float | None, typer.Option(help="µm per pixel of slides without.")] = None,
) -> None:
    """The whole way in minutes: slides → tissue types → model → dataset → report."""
    from heterotissue.demo import collect, demo_slides, run_demo, summary

    started = time.time()
    target = Target.of(str(out / "store"), "")
    found = demo_slides(target.store, out, slides, parse_names(classes) if classes else None, mpp)
    timings: dict[str, float] = {}

    def run(request: Request) -> None:
        began = time.time()
        run_or_fail(target, request)
        timings[request.stage] = time.time() - began

    run_demo(found, load_recipe("tiny"), run)
    collect(target.store, out)
    console.print(summary(out, timings, time.time() - started))


@app.command(epilog=example("htd doctor"))
def doctor() -> None:
    """Say what this machine has, what is missing, and what to do."""
    from heterotissue.doctor import examine

    findings = examine()
    table = Table(box=None, show_header=False)
    for finding in findings:
        mark = "[green]ok[/]" if finding.good else "[yellow]![/]"
        table.add_row(mark, finding.name, finding.detail)
    console.print(table)
    if not all(finding.good for finding in findings):
        raise typer.Exit(1)


@jobs_app.command("list", epilog=example("htd jobs list"))
def jobs_list(store: StoreOption = None, server: ServerOption = None) -> None:
    """List jobs with their state."""
    table = Table("job", "state", "done", "failed", box=None)
    with all_jobs(store, server) as jobs:
        for status in jobs:
            done = f"{status.done}/{status.total}"
            table.add_row(status.job, status.state, done, str(len(status.failed)))
    console.print(table)


@contextmanager
def all_jobs(store: str | None, server: str | None) -> Iterator[Iterable[JobStatus]]:
    """The jobs of a store, or of a gateway."""
    if server is None:
        ledger = Ledger(Target.of(store, "").store)
        yield (status for job in ledger.jobs() if (status := ledger.find(job)) is not None)
    else:
        with remote.connect(server) as client:
            yield client.jobs()


@jobs_app.command("show", epilog=example("htd jobs show train-0123456789abcdef"))
def jobs_show(job: str, store: StoreOption = None, server: ServerOption = None) -> None:
    """Show one job."""
    if server is None:
        report(Ledger(Target.of(store, "").store).status(job))
    else:
        with remote.connect(server) as client:
            report(client.job(job))


@jobs_app.command("cancel", epilog=example("htd jobs cancel train-0123456789abcdef"))
def jobs_cancel(job: str, store: StoreOption = None, server: ServerOption = None) -> None:
    """Stop a job."""
    if server is None:
        ledger = Ledger(Target.of(store, "").store)
        ledger.stage(job)
        ledger.cancel(job)
        report(ledger.status(job))
    else:
        with remote.connect(server) as client:
            report(client.cancel_job(job))


@jobs_app.command("retry", epilog=example("htd jobs retry train-0123456789abcdef"))
def jobs_retry(
    job: str, store: StoreOption = None, broker: BrokerOption = None, server: ServerOption = None
) -> None:
    """Try again what failed or was cancelled."""
    if server is None:
        target = Target.of(store, broker)
        ledger = Ledger(target.store)
        kind = REQUESTS[ledger.stage(job)]
        run_and_report(target, kind.model_validate(ledger.request(job)))
    else:
        with remote.connect(server) as client:
            end(remote.retry(client, job))


@stack_app.command("up", epilog=example("htd stack up --services ingest,embed"))
def stack_up(
    folder: Annotated[Path, typer.Option(help="Data, logs and keys.")] = Path("out/stack"),
    services: Annotated[str, typer.Option(help="Which workers; named twice: two.")] = ",".join(
        REQUESTS
    ),
    triton: Annotated[bool, typer.Option(help="With a Triton server; then 'htd deploy'.")] = False,
) -> None:
    """Start the local stack; Ctrl-C stops it."""
    from heterotissue.stack.supervisor import Stack

    names = parse_names(services)
    unknown = set(names) - set(REQUESTS)
    if unknown:
        raise InputError(f"no such services: {sorted(unknown)}; there are {', '.join(REQUESTS)}")
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    say = functools.partial(console.print, highlight=False)
    with Stack(folder, names, say, triton=triton, gateway=True) as stack:
        console.print(f"ready       source {stack.folder / 'env'}", highlight=False)
        try:
            while True:
                stack.revive()
                time.sleep(1)
        except KeyboardInterrupt:
            console.print("stopping; running shards are finished or handed back")


@app.command(epilog=example("htd gateway"))
def gateway() -> None:
    """Serve the HTTP API at HTD_GATEWAY_HOST and HTD_GATEWAY_PORT; Ctrl-C stops it."""
    from services.gateway.server import serve

    configure_logging(settings().log_level)
    serve(settings())


@stack_app.command("status", epilog=example("htd stack status"))
def stack_state(folder: Annotated[Path, typer.Option()] = Path("out/stack")) -> None:
    """Say what of the stack runs."""
    from heterotissue.stack.supervisor import stack_status

    states = stack_status(folder)
    for name, running in states.items():
        console.print(f"{name:<12}{'[green]runs[/]' if running else '[red]is gone[/]'}")
    if not states or not all(states.values()):
        if not states:
            console.print(f"no stack is up in {folder}")
        raise typer.Exit(1)


def parse_names(text: str) -> list[str]:
    """Split a comma list."""
    return [name.strip() for name in text.split(",") if name.strip()]


def export_formats(names: list[str]) -> tuple[ExportFormat, ...]:
    """Check names of export formats."""
    return TypeAdapter(tuple[ExportFormat, ...]).validate_python(tuple(names))


def parse_proportions(items: list[str]) -> dict[str, float]:
    """Read class=share pairs. Raises `InputError` for anything else."""
    shares = {}
    for item in items:
        name, _, share = item.rpartition("=")
        try:
            shares[name] = float(share)
        except ValueError as error:
            raise InputError(f"{item!r} is no class=share, such as tumor=0.4") from error
    return shares


def published(store: ObjectStore, model: str) -> ModelRecord:
    """Return the record of a model, `<name>` or `<name>/<version>`."""
    return read_model(store, ModelRef.parse(model))


def changed(request: R, changes: list[str] | None) -> R:
    """Set fields of a request by dotted names; values are read as YAML.

    Raises:
        InputError: there is no such field, or the value does not fit.
    """
    plain: dict[str, Any] = request.model_dump(mode="json")
    for item in changes or []:
        path, sign, value = item.partition("=")
        part: Any = plain
        *parents, last = path.split(".")
        for name in parents:
            part = part.get(name) if isinstance(part, dict) else None
        if not sign or not isinstance(part, dict) or last not in part:
            raise InputError(f"--set {item}: {request.stage} has no field {path!r}")
        part[last] = yaml.safe_load(value)
    return type(request).model_validate(plain)


def load_recipe(name: str) -> Recipe:
    """Load a recipe by its name, or from a YAML file. Raises `InputError`."""
    shipped = files("services").joinpath("train", "recipes", f"{name}.yaml")
    path = Path(name)
    if not shipped.is_file() and not path.is_file():
        raise InputError(f"no recipe {name!r}: give tiny, base, paper, or a YAML file")
    text = shipped.read_text() if shipped.is_file() else path.read_text()
    return Recipe.model_validate(_yaml(text, name))


def load_pipeline(file: Path) -> list[Request]:
    """Read and check a pipeline file. Raises `InputError` naming the request that is wrong."""
    if not file.is_file():
        raise InputError(f"{file} is not there")
    content = _yaml(file.read_text(), str(file))
    items = TypeAdapter(list[dict[str, Any]]).validate_python(content.get("requests"))
    requests = []
    for number, item in enumerate(items, 1):
        stage = item.pop("stage", None)
        if stage not in REQUESTS:
            raise InputError(f"{file}: request {number} has stage {stage!r}; use {list(REQUESTS)}")
        try:
            requests.append(REQUESTS[stage].model_validate(item))
        except ValidationError as error:
            raise InputError(f"{file}: request {number} ({stage}): {explain(error)}") from error
    return requests


def _yaml(text: str, name: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{name} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{name} must hold fields")
    return content


def main() -> None:
    """Run the command line; errors on purpose are one line, and exit codes tell them apart."""
    configure_logging("WARNING")
    try:
        app(standalone_mode=True)
    except ValidationError as error:
        console.print(f"[red]error:[/] {explain(error)}", highlight=False)
        sys.exit(2)
    except JobError as error:
        console.print(f"[red]error:[/] {error}", highlight=False)
        sys.exit(1)
    except InputError as error:
        console.print(f"[red]error:[/] {error}", highlight=False)
        sys.exit(2)
    except HeteroTissueError as error:
        console.print(f"[red]error:[/] {error}", highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("interrupted; run the same command again to go on")
        sys.exit(130)


if __name__ == "__main__":
    main()
