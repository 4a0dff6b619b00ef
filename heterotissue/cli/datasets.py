"""Commands of datasets: synthesize, export, verify, resolve, estimate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heterotissue import remote
from heterotissue.cli.options import (
    EXPORT_FORMATS,
    FOLDER_FORMATS,
    BrokerOption,
    DryRunOption,
    FreshOption,
    GuidanceCropsOption,
    GuidanceMapOption,
    ModelOption,
    ReplaceOption,
    SeedOption,
    ServerOption,
    SetOption,
    StainingOption,
    StepsOption,
    StoreOption,
    changed,
    check_name,
    check_positive,
    example,
    export_formats,
    folder_formats,
    parse_proportions,
)
from heterotissue.cli.outcome import end, run_and_end
from heterotissue.progress import say, working
from heterotissue.running import Target
from shared.computing import prepare
from shared.contracts.models import ModelRef
from shared.contracts.synthesize import CropSource, DatasetRequest, MapSource
from shared.device import choose_device
from shared.errors import InputError
from shared.models import find_version

app = typer.Typer()


@app.command(epilog=example("htd synthesize --model lung --images 1000 --proportion tumor=0.4"))
def synthesize(
    model: ModelOption,
    dataset: Annotated[
        str, typer.Option(help="Name of the dataset.", callback=check_name)
    ] = "dataset",
    images: Annotated[int, typer.Option(min=1, help="Number of images.")] = 64,
    proportion: Annotated[
        list[str] | None,
        typer.Option(help="<class>=<share of labelled pixels>, e.g. tumor=0.4 (repeatable)."),
    ] = None,
    maps: Annotated[
        str | None,
        typer.Option(
            help="Region set that maps come from; default: the model's.", callback=check_name
        ),
    ] = None,
    sample_maps: Annotated[
        bool,
        typer.Option(help="Sample new label maps by the model's layout model."),
    ] = False,
    crops: Annotated[
        str | None,
        typer.Option(
            help="Region set that crops come from; default: the model's.", callback=check_name
        ),
    ] = None,
    steps: StepsOption = None,
    guidance_map: GuidanceMapOption = None,
    guidance_crops: GuidanceCropsOption = None,
    staining: StainingOption = None,
    seed: SeedOption = 0,
    export: Annotated[
        list[str] | None, typer.Option(help=f"{EXPORT_FORMATS} (repeatable).")
    ] = None,
    store: StoreOption = None,
    broker: BrokerOption = None,
    server: ServerOption = None,
    fresh: FreshOption = False,
    replace: ReplaceOption = False,
    dry_run: DryRunOption = False,
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
        maps=MapSource(regions=maps, sampled=sample_maps),
        crops=CropSource(regions=crops),
        steps=steps,
        guidance_map=guidance_map,
        guidance_crops=guidance_crops,
        staining=staining,
        seed=seed,
        exports=export_formats(export or []),
    )
    if server is None:
        target = Target.of(store, broker, dry_run)
        version = find_version(target.store, model).version
        request = changed(request.model_copy(update={"version": version}), change)
        run_and_end(target, request, fresh=fresh, replace=replace)
    elif fresh or replace or store or broker or dry_run:
        raise InputError("--server excludes --store, --broker, --fresh, --replace and --dry-run")
    else:
        with remote.connect(server) as client:
            end(remote.make_dataset(client, changed(request, change)))


@app.command(epilog=example("htd export dataset out/dataset"))
def export(
    dataset: Annotated[str, typer.Argument(help="Name of the dataset.", callback=check_name)],
    folder: Annotated[Path, typer.Argument(help="Folder that receives the files.")],
    formats: Annotated[
        list[str] | None, typer.Option("--format", help=f"{FOLDER_FORMATS} (repeatable).")
    ] = None,
    polygons: Annotated[
        bool,
        typer.Option("--polygons", help="COCO: outline parts without holes by polygons."),
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Delete an earlier export in the folder first.")
    ] = False,
    store: StoreOption = None,
) -> None:
    """Write a dataset's images and label maps as files in common formats.

    folder: images, masks and metadata.jsonl. coco, geojson: annotations and images. webdataset:
    the shards. parquet: images and masks in tables. Each opens by datasets.load_dataset, or by the
    tool that it is named for.
    """
    from shared.datasets.export_folder import export_dataset

    kinds = folder_formats(formats or ["folder"])
    with working("exporting"):
        images = export_dataset(
            Target.of(store, "").store, dataset, folder, kinds, polygons=polygons, replace=replace
        )
    say(f"dataset: {folder} ({images} images)")


@app.command(epilog=example("htd verify out/dataset/images/00000000.png --dataset dataset"))
def verify(
    files: Annotated[list[Path], typer.Argument(help="Pictures (repeatable).")],
    dataset: Annotated[
        str | None, typer.Option(help="Dataset that the pictures should be of.")
    ] = None,
    store: StoreOption = None,
) -> None:
    """Say whether pictures are marked as synthetic, and are unchanged images of a dataset.

    The exit code is 0 if all are, else 1; 2 if a file cannot be read.
    """
    from heterotissue.verify import Known
    from heterotissue.verify import verify as examine

    known = Known(Target.of(store, "").store, dataset) if dataset else None
    code = 0
    for path in files:
        try:
            good, text = examine(path, known)
        except InputError as error:
            good, text, code = False, str(error), 2
        typer.echo(f"{path}: {text}")
        code = code or int(not good)
    if code:
        raise typer.Exit(code)


@app.command(epilog=example("htd resolve dataset slide-0123456789abcdef"))
def resolve(
    dataset: Annotated[str, typer.Argument(help="Name of the dataset.")],
    pseudonyms: Annotated[
        list[str] | None,
        typer.Argument(help="Pseudonyms; default: those of all slides and patients."),
    ] = None,
    store: StoreOption = None,
) -> None:
    """Say which slides, patients or regions of this store a dataset's pseudonyms stand for."""
    from shared.datasets.pseudonyms import is_as_made, source_names
    from shared.datasets.samples import load_dataset

    opened = Target.of(store, "").store
    record = load_dataset(opened, dataset)
    names = source_names(opened, record, regions=bool(pseudonyms))
    if unknown := [each for each in pseudonyms or () if each not in names]:
        raise InputError(f"dataset {dataset!r} has no {', '.join(unknown)}")
    for each in pseudonyms or sorted(names, key=lambda each: names[each]):
        typer.echo(f"{each}  {names[each]}")
    if not is_as_made(opened, record.request):
        typer.echo(
            f"Caution: the regions that dataset {dataset!r} was made from were changed since, so "
            "that other slides may have these names now",
            err=True,
        )


@app.command(epilog=example("htd estimate --model lung --images 1000000 --size 512 --tflops 400"))
def estimate(
    model: Annotated[
        str | None,
        typer.Option(
            help="<name>, which is its newest version, or <name>/<version>.",
            callback=check_name,
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Number of images.")] = 1_000_000,
    size: Annotated[
        int | None,
        typer.Option(min=32, help="Side of an image in pixels; default: the model's."),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Images made at a time; default: 16, or 2 on a processor."),
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(
            help="Sustained TFLOP/s of another device, to estimate its hours too.",
            callback=check_positive,
        ),
    ] = None,
    slides: Annotated[
        int | None,
        typer.Option(min=1, help="Number of slides of a cohort to estimate, instead of a dataset."),
    ] = None,
    patches: Annotated[
        int | None, typer.Option(min=1, help="Patches of all slides together; with --slides.")
    ] = None,
    dim: Annotated[int, typer.Option(min=1, help="Numbers of a feature.")] = 1536,
    machines: Annotated[int, typer.Option(min=1, help="Machines with a GPU each.")] = 16,
    cores: Annotated[int, typer.Option(min=1, help="Cores of a machine.")] = 16,
    figures: Annotated[
        Path | None,
        typer.Option(help="Measured figures; default: benchmarks/results/scale.json."),
    ] = None,
    store: StoreOption = None,
) -> None:
    """Estimate the cost of a dataset from one batch here, or of a cohort from measured figures."""
    if (model is None) == (slides is None) or (slides is None) != (patches is None):
        raise InputError("give --model for a dataset, or --slides and --patches for a cohort")
    if slides is not None and patches is not None:
        cohort = (slides, patches, dim)
        _estimate_cohort(cohort, (machines, cores, tflops), figures)
        return
    from heterotissue.estimate import estimate as measure
    from shared.diffusion.model_store import load_model

    target = Target.of(store, "")
    device = choose_device(target.config.device)
    sampler = load_model(target.store, find_version(target.store, str(model)), device)
    prepare(target.config.threads)
    batch = batch or (2 if device == "cpu" else 16)
    with working(f"measuring a batch of {batch}"):
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
        typer.echo(f"{title:<20}{text}")


def _estimate_cohort(
    cohort: tuple[int, int, int], machines: tuple[int, int, float | None], figures: Path | None
) -> None:
    """Print what a cohort (slides, patches, width of features) takes on machines."""
    from heterotissue.cohort_cost import RESULTS, TERAFLOPS, Cohort, Machines, lines, read_figures

    number, cores, tflops = machines
    measured = read_figures(figures or RESULTS)
    for line in lines(Cohort(*cohort), Machines(number, cores, tflops or TERAFLOPS), measured):
        typer.echo(line)
