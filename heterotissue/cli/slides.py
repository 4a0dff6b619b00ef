"""Commands from slides to tissue types: phantom, ingest, tiles, embed, cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heterotissue.cli.options import (
    BrokerOption,
    CohortOption,
    DryRunOption,
    FreshOption,
    RegionSizeOption,
    SetOption,
    StoreOption,
    changed,
    example,
    parse_names,
)
from heterotissue.cli.outcome import run_and_end
from heterotissue.progress import console
from heterotissue.running import Target
from heterotissue.sources import find_slides, slide_sources, tile_table
from shared.contracts.base import Classes
from shared.contracts.cluster import ClusterRequest
from shared.contracts.embed import EmbedRequest
from shared.contracts.ingest import IngestRequest, PatchGrid
from shared.contracts.regions import RegionRule

app = typer.Typer()


@app.command(epilog=example("htd phantom slides/ --count 4 --side 8192"))
def phantom(
    folder: Annotated[Path, typer.Argument(help="Folder that receives the slides.")],
    count: Annotated[int, typer.Option(min=1, help="Number of slides.")] = 1,
    side: Annotated[
        int, typer.Option(help="Width and height of a slide, in pixels of 0.5 µm.")
    ] = 4096,
    seed: Annotated[
        int, typer.Option(help="Seed of the first slide; each further slide adds 1.")
    ] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Number of threads.")] = 2,
) -> None:
    """Write H&E-like phantom slides with exact annotations."""
    from shared.phantom import write_phantom

    for number in range(count):
        name = f"phantom-{seed + number}"
        files = write_phantom(folder, name, side, side, seed + number, threads)
        labels = ", ".join(path.name for path in (files.mask, files.geojson, files.xml))
        console.print(f"{files.slide}  (labels: {labels})")


@app.command(epilog=example("htd ingest slides/ --cohort lung --classes stroma,tumor --mpp 0.5"))
def ingest(
    slides: Annotated[list[Path], typer.Argument(help="Slides, or folders of slides.")],
    cohort: CohortOption = "cohort",
    classes: Annotated[
        str | None, typer.Option(help="Class names in the order of their indices, from 1.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Folder of annotations; default: beside the slides.")
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(help="µm per pixel of slides that state no resolution.")
    ] = None,
    region_size: RegionSizeOption = 256,
    region_mpp: Annotated[float, typer.Option(help="µm per pixel of regions.")] = 0.5,
    in_place: Annotated[
        bool,
        typer.Option("--in-place", help="Refer to the files by path; do not copy them."),
    ] = False,
    store: StoreOption = None,
    broker: BrokerOption = None,
    fresh: FreshOption = False,
    dry_run: DryRunOption = False,
    change: SetOption = None,
) -> None:
    """Ingest slides: find tissue, draw label maps, index patches, cut training regions.

    Annotations are found by name: <slide>.geojson, <slide>.xml, <slide>_mask.tiff.
    """
    target = Target.of(store, broker, dry_run)
    sources = slide_sources(
        target.store,
        find_slides(slides),
        labels=labels,
        use_labels=classes is not None,
        mpp=mpp,
        in_place=in_place,
    )
    request = IngestRequest(
        cohort=cohort,
        slides=sources,
        classes=Classes.of(*parse_names(classes)) if classes else None,
        patches=PatchGrid(size=region_size // 2, mpp=region_mpp, stride=region_size // 4),
        regions=RegionRule(size=region_size, mpp=region_mpp),
    )
    run_and_end(target, changed(request, change), fresh=fresh)


@app.command(epilog=example("htd tiles crc/ --classes gland --mpp 0.5 --slide 'patient(\\d+)'"))
def tiles(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder of tiles; subfolders train/, val/ and test/ give the split."),
    ],
    classes: Annotated[
        str, typer.Option(help="Class names in the order of their indices, from 1.")
    ],
    mpp: Annotated[float, typer.Option(help="µm per pixel of the tiles.")],
    cohort: CohortOption = "cohort",
    masks: Annotated[
        Path | None, typer.Option(help="Folder of masks; default: beside the tiles.")
    ] = None,
    slide: Annotated[
        str | None,
        typer.Option(
            help="Regular expression; its first group in a tile's name is the slide or patient."
        ),
    ] = None,
    region_size: RegionSizeOption = 256,
    region_mpp: Annotated[
        float | None, typer.Option(help="µm per pixel of regions; default: that of the tiles.")
    ] = None,
    store: StoreOption = None,
    broker: BrokerOption = None,
    fresh: FreshOption = False,
    dry_run: DryRunOption = False,
    change: SetOption = None,
) -> None:
    """Ingest tiles that were cut elsewhere, with their masks, as training regions.

    Masks are found by name: <tile>.mask.png, <tile>_mask.png. The pixels of a mask are class
    indices. In a folder that has the name of a class, pixels that are not black are that class.
    All other pixels are class 0, other tissue.
    """
    target = Target.of(store, broker, dry_run)
    mask_classes = Classes.of(*parse_names(classes), exhaustive=True)
    request = IngestRequest(
        cohort=cohort,
        tiles=tile_table(
            target.store, cohort, folder, masks=masks, classes=mask_classes, slide_pattern=slide,
            mpp=mpp,
        ),
        classes=mask_classes,
        regions=RegionRule(
            size=region_size, mpp=region_mpp or mpp, low=0, high=1, min_classes=1, min_tissue=0,
            count_background=True, overlap=0, max_per_slide=10_000,
        ),
    )  # fmt: skip
    run_and_end(target, changed(request, change), fresh=fresh)


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
        typer.Option("--import", help="Folder of TRIDENT or CLAM .h5 files with features."),
    ] = None,
    store: StoreOption = None,
    broker: BrokerOption = None,
    fresh: FreshOption = False,
    dry_run: DryRunOption = False,
    change: SetOption = None,
) -> None:
    """Embed a cohort's patches, or import features that were made elsewhere."""
    target = Target.of(store, broker, dry_run)
    if imported is not None:
        from shared.features import import_features

        record = import_features(target.store, cohort, encoder, imported)
        console.print(f"embed: [green]imported[/] {sum(record.slides.values())} features")
        return
    request = EmbedRequest(
        cohort=cohort, encoder=encoder, weights=str(weights.resolve()) if weights else None
    )
    run_and_end(target, changed(request, change), fresh=fresh)


@app.command(epilog=example("htd cluster --cohort lung --run types --k 20"))
def cluster(
    run: Annotated[
        str, typer.Option(help="Name of the clustering and of its region set.")
    ] = "types",
    cohort: CohortOption = "cohort",
    encoder: Annotated[str, typer.Option(help="Encoder of the features.")] = "embedded",
    k: Annotated[int, typer.Option(help="Number of tissue types.", min=2, max=255)] = 100,
    region_size: RegionSizeOption = 256,
    region_mpp: Annotated[float, typer.Option(help="µm per pixel of regions.")] = 0.5,
    store: StoreOption = None,
    broker: BrokerOption = None,
    fresh: FreshOption = False,
    dry_run: DryRunOption = False,
    change: SetOption = None,
) -> None:
    """Find tissue types, map them onto the slides, and cut regions.

    To name or merge types, edit clusters/<run>/types.yaml, then run this command with --fresh.
    """
    request = ClusterRequest(
        run=run,
        cohort=cohort,
        encoder=encoder,
        k=k,
        regions=RegionRule(size=region_size, mpp=region_mpp),
    )
    run_and_end(Target.of(store, broker, dry_run), changed(request, change), fresh=fresh)
