"""Editing pictures in this process: painting into them, re-staining them, varying them."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from heterotissue.series import Series, SeriesRecord, record_sha256
from shared.arrays import UInt8
from shared.computing import prepare
from shared.contracts.models import ModelRef
from shared.datasets.edits import check_edit, edit_crops
from shared.datasets.field_inputs import area_labels, check_crop, find_tissue, model_labels
from shared.device import choose_device
from shared.diffusion.crops import Crop
from shared.diffusion.editing import edit_sampler, paint, redraw, restain
from shared.diffusion.fields import FieldSampler
from shared.diffusion.model_store import LoadedModel, load_model
from shared.errors import InputError
from shared.imaging.codec import encode_png
from shared.imaging.marks import Mark, mark_png
from shared.imaging.mask_values import Lookup
from shared.imaging.masks import Mask
from shared.imaging.sandboxed_mask import open_mask
from shared.imaging.tile_images import as_seen, read_image
from shared.seeds import image_seed
from shared.settings import Settings
from shared.storage import Store, sha256


class Editor:
    """Edits a picture with a model.

    Args:
        store: holds the model.
        ref: the model version.
        config: settings of this process.
        image: the picture; it is turned upright, transparent pixels are laid on white, and 16 bits
            become 8.
        labels: mask of the model's classes, of the picture's size.
        crops: classes, each with a square picture of its tissue; classes without one get a crop
            of the picture itself.

    Raises:
        InputError: a file cannot be read or does not fit the others or the model.
    """

    def __init__(
        self,
        store: Store,
        ref: ModelRef,
        config: Settings,
        image: Path,
        labels: Path,
        crops: Sequence[tuple[str, Path]],
    ) -> None:
        prepare(config.threads)
        self.model: LoadedModel = load_model(store, ref, choose_device(config.device))
        self._name = image.name
        self.image, self._turn, *_ = read_image(image)
        mask = open_mask(labels)
        self._check_size(mask)
        self.labels = self._as_seen(mask, model_labels(mask, self.model.record))
        self._given = [self._read_crop(name, path) for name, path in crops]

    @property
    def inputs(self) -> dict[str, str]:
        """What edits of the whole are made from → its SHA-256: the model, and pixels as read."""
        names = self.model.record.classes.names
        crops = {f"crop of {names[crop.label]}": crop.pixels for crop in self._given}
        pixels = {"picture": self.image, "labels": self.labels, **crops}
        found = {name: sha256(array.tobytes()) for name, array in pixels.items()}
        return {"weights": record_sha256(self.model.record), **found}

    def paint(self, area: Path, border: int, seed: int) -> bytes:
        """Paint the label map into an area, a mask that is not 0 there; return a PNG."""
        where = self.read_area(area)
        return self._png(paint(self._sampler(seed, where), self.image, where, border))

    def read_area(self, path: Path) -> NDArray[np.bool_]:
        """Read a mask that is not 0 in an area of the picture: bool (h, w).

        Raises:
            InputError: it cannot be read, or does not fit the picture.
        """
        mask = open_mask(path)
        self._check_size(mask)
        return self._as_seen(mask, area_labels(mask)) > 0

    def redraw(self, strength: float, seed: int) -> bytes:
        """Draw the picture again from time `strength` on; return a PNG."""
        return self._png(redraw(self._sampler(seed), self.image, strength, 0.0))

    def restain(self, strength: float, staining: float, seed: int) -> bytes:
        """Stain the classes of the given crops as these are; return a PNG."""
        classes = [crop.label for crop in self._given]
        return self._png(restain(self._sampler(seed), self.image, strength, staining, classes))

    def _check_size(self, mask: Mask) -> None:
        """Raise `InputError` before a mask is read whole that cannot fit the picture."""
        height, width = self.image.shape[:2]
        if sorted((mask.width, mask.height)) != sorted((width, height)):
            raise InputError(
                f"{mask.path.name} is {mask.width}×{mask.height} px, but {self._name} is "
                f"{width}×{height} px: give a mask of the picture's size"
            )

    def _as_seen(self, mask: Mask, table: Lookup) -> UInt8:
        labels = table(mask.rows(0, mask.height))
        return as_seen(self._name, self.image, labels, self._turn, mask)

    def _sampler(self, seed: int, area: NDArray[np.bool_] | None = None) -> FieldSampler:
        given = [crop.label for crop in self._given]
        check_edit(self.model.record, self.image, self.labels, area, given)
        crops = edit_crops(self.model.record, self.image, self.labels, area, self._given, seed)
        return edit_sampler(self.model, self.labels, crops, seed)

    def _read_crop(self, tissue: str, path: Path) -> Crop:
        record = self.model.record
        label = find_tissue(tissue, record).index
        pixels = read_image(path).pixels
        check_crop(path.name, pixels, record)
        return Crop(label, 0, 0, pixels)

    def _png(self, image: UInt8) -> bytes:
        mark = Mark(str(self.model.record.ref), source="compositeWithTrainedAlgorithmicMedia")
        return mark_png(encode_png(image), mark)


class VariationsRecord(SeriesRecord):
    """What variations of a picture are made from: <picture>-variations.json."""

    strength: float = Field(description="see `Editor.redraw`")


def draw_variations(
    editor: Editor, picture: str, n: int, strength: float, seed: int, out: Path
) -> None:
    """Write variations of a picture into a folder; those that are there already stay.

    Args:
        editor: of the picture.
        picture: the name that the files begin with: <picture>-0000.png, and so on.
        n: number of variations.
        strength: see `Editor.redraw`.
        seed: of the noise of all variations.
        out: the folder, which may hold other files, too.

    Raises:
        InputError: the folder holds files of such names that are not these variations; or the
            picture, its labels and crops do not fit.
    """
    record = VariationsRecord(
        model=str(editor.model.record.ref), n=n, seed=seed, inputs=editor.inputs, strength=strength
    )

    def name_of(number: int) -> str:
        return f"{picture}-{number:04d}.png"

    others = f"{glob.escape(picture)}-[0-9][0-9][0-9][0-9].png"
    series = Series(
        out / f"{picture}-variations.json", record, lambda number: [name_of(number)], others
    )
    for number in range(n):
        if series.lacks(number):
            series.write(name_of(number), editor.redraw(strength, image_seed(seed, number)))
