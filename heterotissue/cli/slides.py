"""Commands from slides to tissue types: phantom, ingest, tiles, embed, cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from heterotissue.checks import cohort_scale
from heterotissue.cli.cohorts import end_cohort, tell
from heterotissue.cli.options import (
    BrokerOption,
    CohortOption,
    DryRunOption,
    FreshOption,
    RegionSizeOption,
    RenameOption,
    ReplaceOption,
    SetOption,
    StoreOption,
    changed,
    check_mpp,
    check_name,
    example,
    parse_classes,
    parse_renames,
)
from heterotissue.cli.outcome import EXIT_CODES, run_and_end
from heterotissue.embedding_cost import embedding_line
from heterotissue.feature_files import import_request
from heterotissue.features_export import Layout, export_features
from heterotissue.progress import say, show_progress, working
from heterotissue.running import Target
from heterotissue.sources import find_slides, slide_sources, tile_table
from shared.contracts.base import SplitFractions
from shared.contracts.cluster import ClusterRequest
from shared.contracts.embed import EmbedRequest
from shared.contracts.ingest import IngestRequest, PatchGrid, cohort_key
from shared.contracts.regions import RegionRule
from shared.contracts.tiles import tiles_key
from shared.errors import InputError
from shared.storage import Store

app = typer.Typer()


@app.command(epilog=example("htd phantom slides/ --count 4 --side 8192"))
def phantom(
    folder: Annotated[Path, typer.Argument(help="Folder that receives the slides.")],
    count: Annotated[int, typer.Option(min=1, help="Number of slides.")] = 1,
    side: Annotated[
        int, typer.Option(help="Width and height of a slide, in pixels of 0.5 µm.")
    ] = 4096,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the first slide; each further slide adds 1.")
    ] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Number of threads.")] = 2,
) -> None:
    """Write H&E-like phantom slides with exact annotations."""
    from shared.phantom import write_phantom

    for number in range(count):
        name = f"phantom-{seed + number}"
        files = write_phantom(folder, name, side, side, seed + number, threads)
        labels = ", ".join(path.name for path in (files.mask, files.geojson, files.xml))
        say(f"{files.slide}  (labels: {labels})")


PatientOption = Annotated[
    str | None,
    typer.Option(
        "--patient",
        help="Regular expression whose first group in a file's name, or whole match, is the "
        "patient, or a CSV table with columns slide and patient. A patient is in one split. "
        "Default: TCGA's and other known names.",
    ),
]
LeakageOption = Annotated[
    bool,
    typer.Option(
        "--allow-leakage",
        help="Accept given splits that divide the slides of a patient; every report says so.",
    ),
]


@app.command(epilog=example("htd ingest slides/ --cohort lung --classes stroma,tumor --mpp 0.5"))
def ingest(
    slides: Annotated[
        list[Path] | None,
        typer.Argument(help="Slides, folders of slides, CSV tables, or QuPath projects."),
    ] = None,
    cohort: CohortOption = "cohort",
    table: Annotated[
        Path | None,
        typer.Option(
            help="CSV table of the slides: path, slide, patient, site, mpp, labels, "
            "label_format, split."
        ),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Class names in the order of their indices, from 1.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Folder of annotations; default: beside the slides.")
    ] = None,
    mpp: Annotated[
        float | None,
        typer.Option(help="µm per pixel; it overrides what the slides state.", callback=check_mpp),
    ] = None,
    patient: PatientOption = None,
    split_by: Annotated[
        Literal["patient", "site"],
        typer.Option(help="What is never divided between training and test."),
    ] = "patient",
    allow_leakage: LeakageOption = False,
    region_size: RegionSizeOption = 256,
    region_mpp: Annotated[
        float, typer.Option(help="µm per pixel of regions.", callback=check_mpp)
    ] = 0.5,
    rename: RenameOption = None,
    any_stain: Annotated[
        bool, typer.Option("--any-stain", help="Accept slides that do not look like H&E.")
    ] = False,
    in_place: Annotated[
        bool,
        typer.Option("--in-place", help="Refer to the files by path; do not copy them."),
    ] = False,
    keep_source: Annotated[
        bool,
        typer.Option("--keep-source", help="Copy label and macro images and identifying text too."),
    ] = False,
    store: StoreOption = None,
    broker: BrokerOption = None,
    fresh: FreshOption = False,
    replace: ReplaceOption = False,
    dry_run: DryRunOption = False,
    change: SetOption = None,
) -> None:
    """Ingest slides: find tissue, draw label maps, index patches, cut training regions.

    Folders are searched with all folders below them; train/, val/ and test/ give the split.
    Annotations are found by name: <slide>.geojson, <slide>.svs.geojson, <slide>.xml,
    <slide>_mask.tiff and others.
    """
    if not slides and table is None:
        raise InputError("name slides, folders of slides, or a table: htd ingest slides/")
    target = Target.of(store, broker, dry_run)
    found = find_slides(slides or [], table=table, labels=labels, leave_out=target.folder)
    with show_progress("reading") as reporter:
        sources = slide_sources(
            target.store,
            found,
            labels=labels,
            use_labels=classes is not None,
            mpp=mpp,
            patient=patient,
            in_place=in_place,
            keep_source=keep_source,
            fresh=fresh,
            cohort=None if replace else cohort,
            progress=lambda done, total: reporter.phase("", 0, 1, done, total),
        )
    tell(sources.notes, sources.refused)
    named = parse_classes(classes) if classes is not None else None
    request = IngestRequest(
        cohort=cohort,
        slides=sources.slides,
        classes=named,
        label_names=parse_renames(rename, named),
        allow_other_stains=any_stain,
        patches=PatchGrid(size=region_size // 2, mpp=region_mpp, stride=region_size // 4),
        regions=RegionRule(size=region_size, mpp=region_mpp),
        split=SplitFractions(by=split_by),
        allow_leakage=allow_leakage,
    )
    end_cohort(target, changed(request, change), sources.refused, fresh=fresh, replace=replace)


@app.command(epilog=example("htd tiles crc/ --classes gland --mpp 0.5 --patient 'patient(\\d+)'"))
def tiles(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder of tiles; subfolders train/, val/ and test/ give the split."),
    ],
    classes: Annotated[
        str, typer.Option(help="Class names in the order of their indices, from 1.")
    ],
    mpp: Annotated[float, typer.Option(help="µm per pixel of the tiles.", callback=check_mpp)],
    cohort: CohortOption = "cohort",
    masks: Annotated[
        Path | None, typer.Option(help="Folder of masks; default: beside the tiles.")
    ] = None,
    patient: PatientOption = None,
    slide: Annotated[
        str | None,
        typer.Option(
            help="Regular expression; its first group in a tile's name, or the whole match, is the "
            "slide."
        ),
    ] = None,
    rename: RenameOption = None,
    allow_leakage: LeakageOption = False,
    region_size: Annotated[
        int | None,
        typer.Option(
            min=32,
            max=4096,
            help="Side of a region in pixels; default: the largest multiple of 32 that fits every "
            "tile, up to 256.",
        ),
    ] = None,
    region_mpp: Annotated[
        float | None,
        typer.Option(
            help="µm per pixel of regions; default: that of the tiles.", callback=check_mpp
        ),
    ] = None,
    store: StoreOption = None,
    broker: BrokerOption = None,
    fresh: FreshOption = False,
    replace: ReplaceOption = False,
    dry_run: DryRunOption = False,
    change: SetOption = None,
) -> None:
    """Ingest tiles that were cut elsewhere, with their masks, as training regions.

    Masks are found by name: <tile>.mask.png, <tile>_mask.png. A tile with several that differ is
    left out. The pixels of a mask are class indices. In a folder that has the name of a class (or
    one that --rename gives), pixels that are not black are that class. All other pixels are class
    0, other tissue.
    """
    target = Target.of(store, broker, dry_run)
    mask_classes = parse_classes(classes, exhaustive=True)
    names = parse_renames(rename, mask_classes)
    with working("reading tiles"):
        table = tile_table(
            target.store, cohort, folder, masks=masks, classes=mask_classes, slide_pattern=slide,
            mpp=mpp, label_names=names, patient=patient, allow_leakage=allow_leakage,
            replace=replace, region_size=region_size, region_mpp=region_mpp,
        )  # fmt: skip
    tell(table.notes, table.refused)
    if region_size is None:
        say(
            f"regions of {table.region_size} px: the largest multiple of 32 that fits every tile, "
            "up to 256"
        )
    request = IngestRequest(
        cohort=cohort,
        tiles=table.key,
        classes=mask_classes,
        label_names={name: new for name, new in names.items() if name not in table.renamed},
        regions=RegionRule(
            size=table.region_size, mpp=region_mpp or mpp, low=0, high=1, min_classes=1,
            min_tissue=0, count_background=True, overlap=0, max_per_slide=10_000,
        ),
        allow_leakage=allow_leakage,
    )  # fmt: skip
    end_cohort(target, changed(request, change), table.refused, fresh=fresh, replace=replace)


@app.command(epilog=example("htd embed --cohort lung --encoder hoptimus0"))
def embed(
    cohort: CohortOption = "cohort",
    encoder: Annotated[
        str, typer.Option(help="'embedded', a registry key, a timm name or hf-hub:owner/name.")
    ] = "embedded",
    weights: Annotated[
        Path | None, typer.Option(help="Local file with the encoder's weights.")
    ] = None,
    imported: Annotated[
        Path | None,
        typer.Option(
            "--import", help="Folder of TRIDENT or CLAM .h5 files, or their output folder."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Training steps of the 'embedded' encoder; default: 400. Others have none."
        ),
    ] = None,
    store: StoreOption = None,
    broker: BrokerOption = None,
    fresh: FreshOption = False,
    replace: ReplaceOption = False,
    dry_run: DryRunOption = False,
    change: SetOption = None,
) -> None:
    """Embed a cohort's patches, or import features that were made elsewhere.

    As in TRIDENT and CLAM, all patches of the cohort are kept. --set max_white=0.9 leaves out
    glass, and --set min_sharpness=20 what is out of focus; the report counts them by slide.
    """
    target = Target.of(store, broker, dry_run)
    _check_slides(target.store, cohort)
    if imported is not None:
        with working("reading features"):
            request = import_request(target, cohort, encoder, imported)
    else:
        request = EmbedRequest(
            cohort=cohort, encoder=encoder, weights=str(weights.resolve()) if weights else None
        )
    if steps is not None and (imported or encoder != "embedded"):
        raise InputError(f"--steps {steps}: only the encoder 'embedded' is trained")
    if steps is not None:
        request = request.model_copy(update={"train_steps": steps})
    request = changed(request, change)
    if not (dry_run or target.queued):
        with working("measuring"):
            line = embedding_line(target.store, request, target.config, fresh=fresh)
        if line:
            say(line)
    run_and_end(target, request, fresh=fresh, replace=replace)


@app.command(epilog=example("htd features out/ --cohort lung --layout trident"))
def features(
    folder: Annotated[Path, typer.Argument(help="Folder that receives the files.")],
    cohort: CohortOption = "cohort",
    encoder: Annotated[str, typer.Option(help="Encoder of the features.")] = "embedded",
    layout: Annotated[Layout, typer.Option(help="Tool that shall read them.")] = "trident",
    store: StoreOption = None,
) -> None:
    """Write a cohort's features as the files of TRIDENT or CLAM."""
    with working("writing features"):
        left_out = export_features(Target.of(store, None).store, cohort, encoder, layout, folder)
    say(f"features: {folder}")
    for name, reason in left_out.items():
        say(f"  {name}: {reason}")
    if left_out:
        raise typer.Exit(EXIT_CODES["partial"])


@app.command(epilog=example("htd cluster --cohort lung --run types --k 20"))
def cluster(
    run: Annotated[
        str,
        typer.Option(help="Name of the clustering and of its region set.", callback=check_name),
    ] = "types",
    cohort: CohortOption = "cohort",
    encoder: Annotated[str, typer.Option(help="Encoder of the features.")] = "embedded",
    k: Annotated[int, typer.Option(help="Number of tissue types.", min=2, max=255)] = 100,
    region_size: Annotated[
        int | None,
        typer.Option(
            "--region-size",
            min=32,
            max=4096,
            help="Side of a region in pixels; default: that of the cohort's regions.",
        ),
    ] = None,
    region_mpp: Annotated[
        float | None,
        typer.Option(help="µm per pixel of regions; default: the cohort's.", callback=check_mpp),
    ] = None,
    store: StoreOption = None,
    broker: BrokerOption = None,
    fresh: FreshOption = False,
    replace: ReplaceOption = False,
    dry_run: DryRunOption = False,
    change: SetOption = None,
) -> None:
    """Find tissue types, map them onto the slides, and cut regions.

    To name or merge types, edit clusters/<run>/types.yaml, then run this command again.
    """
    target = Target.of(store, broker, dry_run)
    _check_slides(target.store, cohort)
    size, mpp = region_size, region_mpp
    if size is None or mpp is None:
        own = cohort_scale(target.store, cohort)
        size, mpp = size or own[0], mpp or own[1]
        say(f"regions of {size} px at {mpp:g} µm/px, as in cohort {cohort!r}")
    request = ClusterRequest(
        run=run,
        cohort=cohort,
        encoder=encoder,
        k=k,
        regions=RegionRule(size=size, mpp=mpp),
    )
    run_and_end(target, changed(request, change), fresh=fresh, replace=replace)


def _check_slides(store: Store, cohort: str) -> None:
    """Raise `InputError` if the cohort consists of tiles, which have no patches."""
    if any(store.list(tiles_key(cohort))) and not store.exists(cohort_key(cohort)):
        raise InputError(
            f"cohort {cohort!r} consists of labelled tiles, which need no features and no tissue "
            f"types: go on with 'htd train --regions {cohort}'"
        )
