"""Editing pictures in this process: painting into them, re-staining them, varying them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.arrays import UInt8
from shared.computing import prepare
from shared.contracts.models import ModelRef
from shared.datasets.edits import check_edit, edit_crops
from shared.device import choose_device
from shared.diffusion.crops import Crop
from shared.diffusion.editing import edit_sampler, paint, redraw
from shared.diffusion.fields import FieldSampler
from shared.diffusion.model_store import LoadedModel, load_model
from shared.errors import InputError
from shared.imaging.codec import encode_png
from shared.imaging.marks import Mark, mark_png
from shared.imaging.pictures import read_picture
from shared.imaging.sandboxed_mask import open_mask
from shared.settings import Settings
from shared.storage import Store


class Editor:
    """Edits a picture with a model.

    Args:
        store: holds the model.
        ref: the model version.
        config: settings of this process.
        image: the picture.
        labels: mask of the model's class indices, of the picture's size.
        crops: <class> → square picture of its tissue; classes without one get a crop of the
            picture itself.

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
        crops: dict[str, Path],
    ) -> None:
        prepare(config.threads)
        self.model: LoadedModel = load_model(store, ref, choose_device(config.device))
        self.image = np.asarray(read_picture(image).convert("RGB"), np.uint8)
        self.labels = _read_labels(labels, len(self.model.record.classes))
        if self.labels.shape != self.image.shape[:2]:
            raise InputError(
                f"{labels.name} is {self.labels.shape[1]}×{self.labels.shape[0]} px, but "
                f"{image.name} is {self.image.shape[1]}×{self.image.shape[0]} px: give a map of "
                "the picture's size"
            )
        self._given = [self._read_crop(name, path) for name, path in crops.items()]

    def paint(self, area: Path, border: int, seed: int) -> bytes:
        """Paint the label map into an area, a mask that is not 0 there; return a PNG."""
        where = _read_labels(area, 256) > 0
        if where.shape != self.labels.shape:
            raise InputError(
                f"{area.name} is {where.shape[1]}×{where.shape[0]} px: give an area of the "
                f"picture's size, {self.labels.shape[1]}×{self.labels.shape[0]} px"
            )
        return self._png(paint(self._sampler(seed, where), self.image, where, border))

    def redraw(self, strength: float, staining: float, seed: int) -> bytes:
        """Draw the picture again from time `strength` on; return a PNG."""
        return self._png(redraw(self._sampler(seed), self.image, strength, staining))

    def _sampler(self, seed: int, area: NDArray[np.bool_] | None = None) -> FieldSampler:
        given = [crop.label for crop in self._given]
        check_edit(self.model.record, self.image, self.labels, area, given)
        crops = edit_crops(self.model.record, self.image, self.labels, area, self._given, seed)
        return edit_sampler(self.model, self.labels, crops, seed)

    def _read_crop(self, tissue: str, path: Path) -> Crop:
        record = self.model.record
        known = record.classes.names[record.classes.first :]
        if tissue not in known:
            raise InputError(f"{record.ref} has no tissue {tissue!r}; it knows {', '.join(known)}")
        label = record.classes.index(tissue)
        pixels = np.asarray(read_picture(path).convert("RGB"), np.uint8)
        if pixels.shape[0] != pixels.shape[1] or len(pixels) > record.size:
            raise InputError(
                f"{path.name} has {pixels.shape[1]}×{pixels.shape[0]} px: a crop is a square of at "
                f"most {record.size} px"
            )
        return Crop(label, 0, 0, pixels)

    def _png(self, image: UInt8) -> bytes:
        mark = Mark(str(self.model.record.ref), source="compositeWithTrainedAlgorithmicMedia")
        return mark_png(encode_png(image), mark)


def _read_labels(path: Path, classes: int) -> UInt8:
    mask = open_mask(path)
    labels = mask.rows(0, mask.height)
    if labels.max(initial=0) >= classes:
        raise InputError(
            f"{path.name} holds {labels.max()}; the model's labels are 0 to {classes - 1}"
        )
    return labels.astype(np.uint8)
