"""Composing the condition of an image: a turned label map, and a crop of each class in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from diffusers import UNet2DModel

from shared.arrays import Float64, UInt8
from shared.contracts.models import ModelRecord
from shared.contracts.synthesize import CropOrigin, DatasetRequest, Provenance
from shared.datasets.map_choice import donors
from shared.datasets.pseudonyms import Pseudonyms
from shared.datasets.region_bank import RegionBank
from shared.diffusion.crops import (
    Crop,
    CropRule,
    cropped_labels,
    move_crop,
    place,
    take_typical_crop,
)
from shared.diffusion.layouts import sample_layouts
from shared.imaging.augment import symmetry
from shared.seeds import image_seed

WINDOWS = 16
"""Number of random windows that are compared per label map."""


def typical_window(labels: UInt8, size: int, rng: np.random.Generator) -> tuple[int, int]:
    """Choose a window of a label map whose class shares are close to those of the whole map.

    The plan of a dataset counts the classes of whole regions, so such windows nearly keep the
    planned proportions.

    Returns:
        (x, y), upper left corner of the best of `WINDOWS` random windows of `size` pixels.
    """

    def shares(part: UInt8) -> Float64:
        return np.bincount(part.ravel(), minlength=256) / part.size

    whole = shares(labels)
    corners = rng.integers(labels.shape[0] - size + 1, size=(WINDOWS, 2)).tolist()
    return min(
        ((x, y) for x, y in corners),
        key=lambda at: np.abs(
            shares(labels[at[1] : at[1] + size, at[0] : at[0] + size]) - whole
        ).sum(),
    )


@dataclass(frozen=True)
class Composition:
    """The condition of one image.

    Attributes:
        labels: uint8 (size, size), in the model's labels.
        crops: at most one per class in `labels`.
        provenance: the origin of the label map and the crops.
        map_number: number of the map's region.
    """

    labels: UInt8
    crops: list[Crop]
    provenance: Provenance
    map_number: int


class Composer:
    """Composes the conditions of the images of a request.

    The condition of an image depends only on the request, its index and its map. Without
    pseudonyms, its provenance has the names of slides and regions. `layouts` is needed if the
    request samples its maps.
    """

    def __init__(
        self,
        request: DatasetRequest,
        model: ModelRecord,
        maps: RegionBank,
        crops: RegionBank,
        pseudonyms: Pseudonyms | None = None,
        layouts: UNet2DModel | None = None,
    ) -> None:
        self.request, self.model, self.maps, self.crops = request, model, maps, crops
        self.pseudonyms = pseudonyms
        self.layouts = layouts
        self.sampling = request.sampling(model)
        self.rule = CropRule.of(model.recipe.denoiser, model.classes)

    def compose(self, index: int, map_number: int, attempt: int = 0) -> Composition:
        """Compose image `index` with the label map, or the class shares, of region `map_number`.

        Each attempt has another window and other crops, and another seed of the noise.
        """
        request, model = self.request, self.model
        seed = image_seed(request.seed, index)
        if attempt:
            seed = image_seed(seed, attempt)
        rng = np.random.default_rng(seed)
        map_key, map_slide = self.maps.keys[map_number], str(self.maps.slides[map_number])
        if self.layouts is not None:
            x = y = which = 0
            shares = self.maps.shares[map_number].tolist()
            labels = sample_layouts(self.layouts, [shares], [seed], model.size)[0]
        else:
            region = self.maps.read(map_number)
            x, y = typical_window(region.labels, model.size, rng)
            which = int(rng.integers(8)) if request.maps.augment else 0
            labels = symmetry(region.labels[y : y + model.size, x : x + model.size], which)
        crops: list[Crop] = []
        origins: list[CropOrigin] = []
        for label in cropped_labels(labels, self.rule):
            cut = self._crop(label, map_key, map_slide, labels, rng)
            if cut is not None:
                crops.append(cut[0])
                origins.append(cut[1])
        provenance = Provenance(
            key=f"{index:08d}",
            index=index,
            dataset=request.dataset,
            model=str(request.model_ref),
            weights=model.sha256,
            map_regions=self.maps.name,
            sampled_map=self.layouts is not None,
            map_region=map_key,
            map_slide=map_slide,
            map_x=x,
            map_y=y,
            symmetry=which,
            crop_regions=self.crops.name,
            crops=tuple(origins),
            seed=seed,
            sampling=self.sampling,
            condition=request.condition,
            refused=attempt,
        )
        if self.pseudonyms is not None:
            provenance = self.pseudonyms.hide(provenance)
        return Composition(labels, crops, provenance, map_number)

    def _crop(
        self, label: int, map_key: str, map_slide: str, labels: UInt8, rng: np.random.Generator
    ) -> tuple[Crop, CropOrigin] | None:
        """Cut a crop of a class out of a donor region, and place it in the label map.

        The map's own region is a donor only if there is no other. Return None if no donor holds
        the class: the plan cannot exclude this, because its table of shares can miss a tiny area.
        """
        bank = self.crops
        pool = donors(bank.shares, bank.slides, label, map_slide, self.request.crops.slide)
        others = [number for number in pool.tolist() if bank.keys[number] != map_key]
        candidates = others or pool.tolist()
        if not candidates:
            return None
        donor = bank.read(int(candidates[rng.integers(len(candidates))]))
        size = self.model.size
        corner = place(donor.labels, label, size, rng)
        if corner is None:
            return None
        left, top = corner
        window = np.s_[top : top + size, left : left + size]
        cut = take_typical_crop(
            donor.image[window], donor.labels[window], label, self.rule, rng, size
        )
        moved = None if cut is None else move_crop(cut, labels, rng)
        if cut is None or moved is None:
            return None
        origin = CropOrigin(
            label=label,
            region=donor.key,
            slide=donor.slide,
            x=left + cut.x,
            y=top + cut.y,
            side=cut.pixels.shape[0],
            placed_x=moved.x,
            placed_y=moved.y,
        )
        return moved, origin
