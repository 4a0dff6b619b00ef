"""Commands that change pictures, or make series of them: edit, restain, vary, pairs, lesions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from heterotissue.cli.fields import put_crops, split_crop
from heterotissue.cli.options import ModelOption, SeedOption, StoreOption, example
from heterotissue.progress import say, working
from heterotissue.running import Target
from shared.contracts.image import BORDER, MAX_BORDER, RESTAINING, STRENGTH, Edit
from shared.contracts.synthesize import SamplingChoice
from shared.errors import InputError
from shared.models import find_version, read_model
from shared.whole_files import write_whole

if TYPE_CHECKING:
    from heterotissue.edits import Editor

app = typer.Typer()

CropOption = Annotated[
    list[str] | None,
    typer.Option(
        help="<class>=<picture>, a square of its tissue (repeatable); default: from a slide of the "
        "model's regions."
    ),
]
ImageArgument = Annotated[Path, typer.Argument(help="The picture.")]
MapOption = Annotated[
    Path, typer.Option("--labels", help="Mask with the class index of each pixel of the picture.")
]
OwnCropOption = Annotated[
    list[str] | None,
    typer.Option(
        "--crop",
        help="<class>=<picture>, a square of its tissue (repeatable); default: cut from the "
        "picture.",
    ),
]
BorderOption = Annotated[
    int,
    typer.Option(
        "--border", min=0, max=MAX_BORDER, help="Pixels over which new tissue fades into the old."
    ),
]
StrengthOption = Annotated[
    float,
    typer.Option(
        "--strength", help="From 0, where little changes, to 1, where nothing of it is left."
    ),
]


@app.command(
    epilog=example("htd edit a.png --model lung --labels new.png --area area.png --out b.png")
)
def edit(
    image: ImageArgument,
    model: ModelOption,
    labels: MapOption,
    area: Annotated[Path, typer.Option(help="Mask that is not 0 where the picture is painted.")],
    out: Annotated[Path, typer.Option(help="PNG to write.")],
    crop: OwnCropOption = None,
    border: BorderOption = BORDER,
    seed: SeedOption = 0,
    store: StoreOption = None,
) -> None:
    """Paint new tissue into an area of a picture; beyond its border no pixel changes."""
    check_out([out], [image, labels, area, *_paths(crop)])
    editor = _editor(store, model, image, labels, crop)
    with working("painting"):
        _write(out, editor.paint(area, border, seed))


@app.command(
    epilog=example("htd restain a.png --model lung --labels a.mask.png --crop tumor=t.png")
)
def restain(
    image: ImageArgument,
    model: ModelOption,
    labels: MapOption,
    crop: OwnCropOption = None,
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("restained.png"),
    strength: StrengthOption = STRENGTH,
    staining: Annotated[
        float, typer.Option(help="Strength of matching the staining of the crops, 0 to 1.")
    ] = RESTAINING,
    seed: SeedOption = 0,
    store: StoreOption = None,
) -> None:
    """Stain a picture as other crops are; its cells and its labels stay."""
    if not crop:
        raise InputError("give the wanted staining: --crop <class>=<picture>")
    Edit(image=str(image), restain=True, strength=strength)  # both state the bounds
    SamplingChoice(staining=staining)
    check_out([out], [image, labels, *_paths(crop)])
    editor = _editor(store, model, image, labels, crop)
    with working("re-staining"):
        _write(out, editor.restain(strength, staining, seed))


@app.command(epilog=example("htd vary a.png --model lung --labels a.mask.png --n 20"))
def vary(
    image: ImageArgument,
    model: ModelOption,
    labels: MapOption,
    n: Annotated[int, typer.Option("--n", min=1, max=1000, help="Number of variations.")] = 20,
    out: Annotated[Path, typer.Option(help="Folder that receives them.")] = Path("variations"),
    crop: OwnCropOption = None,
    strength: StrengthOption = STRENGTH,
    seed: SeedOption = 0,
    store: StoreOption = None,
) -> None:
    """Draw variations of a picture with the same labels.

    If it is interrupted, the same command goes on; with a larger --n it adds variations.
    """
    from heterotissue.edits import draw_variations

    Edit(image=str(image), strength=strength)  # it states the bounds
    editor = _editor(store, model, image, labels, crop)
    with working("drawing"):
        draw_variations(editor, image.stem, n, strength, seed, out)
    say(f"variations: {out} ({n} picture{'s' * (n > 1)})")


@app.command(
    epilog=example("htd pairs a.mask.png --model lung --other-crop tumor=t.png --out pairs")
)
def pairs(
    labels: Annotated[
        Path, typer.Argument(help="Mask with the class index of each pixel, of the model's size.")
    ],
    model: ModelOption,
    other_labels: Annotated[Path | None, typer.Option(help="Mask of the second images.")] = None,
    other_crop: Annotated[
        list[str] | None,
        typer.Option(help="<class>=<picture>, the crop of the second images (repeatable)."),
    ] = None,
    crop: CropOption = None,
    n: Annotated[int, typer.Option("--n", min=1, max=1000, help="Number of pairs.")] = 10,
    out: Annotated[Path, typer.Option(help="Folder that receives them.")] = Path("pairs"),
    seed: SeedOption = 0,
    store: StoreOption = None,
) -> None:
    """Make pairs of images from the same noise that differ in a map or in crops alone.

    If it is interrupted, the same command goes on; with a larger --n it adds pairs.
    """
    from heterotissue.pairs import make_pairs, read_sides
    from shared.device import choose_device
    from shared.diffusion.model_store import load_model

    target = Target.of(store, "")
    record = read_model(target.store, find_version(target.store, model))
    given = put_crops(target.store, crop or [], record)
    others = put_crops(target.store, other_crop or [], record)
    sides = read_sides(target.store, record, labels, other_labels, given, others, seed)
    loaded = load_model(target.store, record.ref, choose_device(target.config.device))
    with working("drawing"):
        make_pairs(loaded, sides, record.recipe.sampling, n, seed, out)
    say(f"pairs: {out} ({n} pair{'s' * (n > 1)})")


@app.command(epilog=example("htd lesions --model lung --tissue tumor --n 200 --out lesions"))
def lesions(
    model: ModelOption,
    tissue: Annotated[str, typer.Option(help="Class of the lesions.")],
    n: Annotated[int, typer.Option("--n", min=1, max=100_000, help="Number of images.")] = 10,
    out: Annotated[Path, typer.Option(help="Folder that receives them.")] = Path("lesions"),
    regions: Annotated[
        str | None, typer.Option(help="Region set; default: that of the model.")
    ] = None,
    without: Annotated[
        Literal["slide", "region"],
        typer.Option(help="What lacks the class where lesions are painted."),
    ] = "slide",
    smallest: Annotated[
        float, typer.Option(help="Smallest lesion, as a share of the image, from 0.001.")
    ] = 0.05,
    largest: Annotated[
        float, typer.Option(help="Largest lesion, as a share of the image, up to 0.9.")
    ] = 0.3,
    border: BorderOption = BORDER,
    seed: SeedOption = 0,
    store: StoreOption = None,
) -> None:
    """Paint lesions into tissue of slides without them, with labels, and keep the unpainted.

    If it is interrupted, the same command goes on; with a larger --n it adds images.
    """
    from heterotissue.lesions import LesionPainter, LesionRule, paint_lesions
    from shared.device import choose_device
    from shared.diffusion.model_store import load_model

    rule = LesionRule(
        tissue=tissue, smallest=smallest, largest=largest, without=without, border=border
    )
    if smallest > largest:
        raise InputError(f"--smallest {smallest} is larger than --largest {largest}")
    target = Target.of(store, "")
    ref = find_version(target.store, model)
    loaded = load_model(target.store, ref, choose_device(target.config.device))
    name = regions or loaded.record.regions
    painter = LesionPainter(target.store, loaded, name, rule, seed)
    with working("painting"):
        paint_lesions(painter, n, out)
    say(f"lesions: {out} ({n} image{'s' * (n > 1)}, each before and after)")


def _editor(
    store: str | None, model: str, image: Path, labels: Path, crop: list[str] | None
) -> Editor:
    from heterotissue.edits import Editor

    target = Target.of(store, "")
    crops = [(tissue, Path(path)) for tissue, path in map(split_crop, crop or [])]
    ref = find_version(target.store, model)
    return Editor(target.store, ref, target.config, image, labels, crops)


def check_out(files: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise `InputError` if a file to write is no PNG, cannot be one, or would replace an input."""
    taken = {_identity(path) for path in inputs} - {None}
    for file in files:
        if file.is_dir():
            raise InputError(f"--out {file} is a folder: give the name of a file")
        if file.suffix.lower() != ".png":
            raise InputError(f"--out {file} must end in .png, because a PNG is written")
        if _identity(file) in taken:
            raise InputError(f"--out would replace {file}, which is an input: choose another name")


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from all others, under whatever name; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _paths(items: list[str] | None) -> list[Path]:
    return [Path(split_crop(item)[1]) for item in items or []]


def _write(path: Path, png: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, png)
    say(f"picture: {path}")
