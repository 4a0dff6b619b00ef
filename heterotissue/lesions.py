"""Lesions painted into real tissue of slides that have none, with their pixels as labels."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.datasets.edits import edit_crops
from shared.datasets.field_inputs import find_tissue
from shared.datasets.region_bank import RegionBank
from shared.diffusion.crops import Crop, CropRule, place, take_typical_crop
from shared.diffusion.editing import edit_sampler, paint
from shared.diffusion.model_store import LoadedModel
from shared.errors import InputError
from shared.imaging.codec import encode_png
from shared.imaging.marks import Mark, mark_png
from shared.imaging.region_sets import load_region_set
from shared.seeds import image_seed
from shared.storage import Store
from shared.whole_files import write_whole

TRIES = 32
"""Number of places of a lesion, and of windows for it, that are tried."""


@dataclass(frozen=True)
class LesionRule:
    """Which lesions are painted where.

    Attributes:
        tissue: name of the class that is painted.
        low, high: bounds of a lesion's area / the image's.
        without: 'slide': only slides without the class receive lesions; 'region': regions
            without it, of any slide.
        border: pixels over which a lesion fades into the tissue around it.
    """

    tissue: str
    low: float = 0.05
    high: float = 0.3
    without: Literal["slide", "region"] = "slide"
    border: int = 8


class Lesion(NamedTuple):
    """Where a painted lesion and its tissue are from; a row of lesions.csv."""

    key: str
    tissue: str
    share: float
    slide: str
    region: str
    x: int
    y: int
    crop_region: str
    seed: int


def draw_lesion(
    tissue: NDArray[np.bool_], share: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Draw a wavy disc around a pixel of the tissue, cut to the tissue, bool (h, w).

    Args:
        tissue: bool (h, w), where a lesion may be.
        share: area of the disc / that of the image.
        rng: draws the place and the outline.
    """
    rows, columns = np.nonzero(tissue)
    chosen = rng.integers(len(rows))
    down, right = np.ogrid[: tissue.shape[0], : tissue.shape[1]]
    y, x = down - rows[chosen], right - columns[chosen]
    waves, phases = rng.uniform(0, 0.12, 4), rng.uniform(0, 2 * np.pi, 4)
    angle = np.arctan2(y, x)
    wave = 1 + sum(waves[n] * np.cos((n + 1) * angle + phases[n]) for n in range(4))
    radius = np.sqrt(share * tissue.size / np.pi)
    lesion: NDArray[np.bool_] = (np.hypot(y, x) < radius * wave) & tissue
    return lesion


class LesionPainter:
    """Paints lesions into training regions.

    Args:
        store: holds the model and the regions.
        model: paints.
        regions: name of the region set.
        rule: which lesions are painted where.
        seed: of all draws.

    Raises:
        InputError: the model does not know the class, no region shows enough of it, or none lacks
            it.
    """

    def __init__(
        self, store: Store, model: LoadedModel, regions: str, rule: LesionRule, seed: int
    ) -> None:
        record = model.record
        tissue = find_tissue(rule.tissue, record)
        rule = replace(rule, tissue=tissue.name)
        self.model, self.rule, self.seed = model, rule, seed
        self.label = tissue.index
        self.bank = RegionBank(store, load_region_set(store, regions), ("train",), record)
        crops = CropRule.of(record.recipe.denoiser, record.classes)
        shares = self.bank.shares[:, self.label]
        shows = shares >= crops.least_area
        lacks = shares == 0
        if rule.without == "slide":
            lacks = ~np.isin(self.bank.slides, np.unique(self.bank.slides[~lacks]))
        self._donors, self._hosts = np.flatnonzero(shows), np.flatnonzero(lacks)
        where = f"training region of {regions!r}"
        if not len(self._donors):
            raise InputError(
                f"no {where} shows as much of {rule.tissue!r} as a crop holds: there is nothing to "
                "paint it like"
            )
        if not len(self._hosts):
            remedy = "name another set"
            remedy += ", or take --without region" if rule.without == "slide" else ""
            raise InputError(f"no {where} is of a {rule.without} without {rule.tissue!r}: {remedy}")

    def write(self, number: int, out: Path) -> Lesion:
        """Paint a lesion, and write the image and its label map before and after.

        Args:
            number: number of the lesion.
            out: folder that receives before/<key>.png, painted/<key>.png and their masks.

        Returns:
            Where the tissue and the lesion are from.

        Raises:
            InputError: the regions that may receive the lesion hold too little tissue.
        """
        record, key = self.model.record, f"{number:06d}"
        seed = image_seed(self.seed, number)
        rng = np.random.default_rng(seed)
        host, (x, y), area = self._choose(rng)
        region = self.bank.read(host)
        window = np.s_[y : y + record.size, x : x + record.size]
        image, before = region.image[window], region.labels[window]
        after = np.where(area, self.label, before).astype(np.uint8)
        donor, crop = self._crop(rng)
        crops = edit_crops(record, image, after, area, [crop], seed)
        sampler = edit_sampler(self.model, after, crops, seed)
        painted = mark_png(
            encode_png(paint(sampler, image, area, self.rule.border)),
            Mark(str(record.ref), key=key, source="compositeWithTrainedAlgorithmicMedia"),
        )
        for kind, png, labels in (
            ("before", encode_png(image), before), ("painted", painted, after),
        ):  # fmt: skip
            (out / kind).mkdir(parents=True, exist_ok=True)
            write_whole(out / kind / f"{key}.png", png)
            write_whole(out / kind / f"{key}.mask.png", encode_png(labels))
        share = round(float(area.mean()), 4)
        return Lesion(key, self.rule.tissue, share, region.slide, region.key, x, y, donor, seed)

    def _choose(self, rng: np.random.Generator) -> tuple[int, tuple[int, int], NDArray[np.bool_]]:
        """Choose a region, a window of it, and the area of the lesion in the window."""
        size, rule = self.model.record.size, self.rule
        background = self.model.record.classes.first > 0
        for _ in range(TRIES):
            host = int(self._hosts[rng.integers(len(self._hosts))])
            labels = self.bank.read(host).labels
            x, y = rng.integers(len(labels) - size + 1, size=2).tolist()
            own = labels[y : y + size, x : x + size]
            tissue = own > 0 if background else np.ones(own.shape, bool)
            share = rng.uniform(rule.low, rule.high)
            if tissue.any():
                area = draw_lesion(tissue, share, rng)
                if rule.low <= area.mean() <= rule.high:
                    return host, (x, y), area
        raise InputError(
            f"no place for a lesion of {rule.low:.0%} to {rule.high:.0%} of an image was found in "
            f"{TRIES} tries: allow smaller ones"
        )

    def _crop(self, rng: np.random.Generator) -> tuple[str, Crop]:
        """Cut a crop of the class out of a region that shows it; return its key, too."""
        record = self.model.record
        rule, size = CropRule.of(record.recipe.denoiser, record.classes), record.size
        donor = self.bank.read(int(self._donors[rng.integers(len(self._donors))]))
        corner = place(donor.labels, self.label, size, rng)
        left, top = corner or (0, 0)
        window = np.s_[top : top + size, left : left + size]
        crop = take_typical_crop(
            donor.image[window], donor.labels[window], self.label, rule, rng, size
        )
        if crop is None:
            raise InputError(f"region {donor.key} lacks the {self.rule.tissue!r} of its table")
        return donor.key, crop


def paint_lesions(painter: LesionPainter, n: int, out: Path) -> None:
    """Write `n` lesions into a folder, and lesions.csv, which says where each is from."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lesions.csv").open("w", newline="", encoding="utf-8", buffering=1) as file:
        table = csv.writer(file)
        table.writerow(Lesion._fields)
        for number in range(n):
            table.writerow(painter.write(number, out))
