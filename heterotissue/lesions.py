"""Lesions painted into real tissue of slides that have none, with their pixels as labels."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from heterotissue.series import Series, SeriesRecord, record_sha256
from shared.contracts.base import Contract, Name
from shared.contracts.image import MAX_BORDER
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


class LesionRule(Contract):
    """Which lesions are painted where."""

    tissue: str = Field(description="name of the class that is painted")
    smallest: float = Field(ge=0.001, le=0.9, description="least area / the image's")
    largest: float = Field(ge=0.001, le=0.9, description="greatest area / the image's")
    without: Literal["slide", "region"] = Field(
        description="slide: only slides without the class receive lesions; region: regions "
        "without it, of any slide",
    )
    border: int = Field(
        ge=0, le=MAX_BORDER, description="pixels over which a lesion fades into its tissue"
    )


class LesionsRecord(LesionRule, SeriesRecord):
    """What a series of lesions is made from: lesions.json."""

    regions: Name = Field(description="region set")


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


def lesion_key(number: int) -> str:
    """Return the key of a lesion."""
    return f"{number:06d}"


def lesion_files(number: int) -> list[str]:
    """Return the names of its images and their label maps: before/<key>.png and the others."""
    key, ends = lesion_key(number), (".png", ".mask.png")
    return [f"{kind}/{key}{end}" for kind in ("before", "painted") for end in ends]


@dataclass(frozen=True)
class Place:
    """Where a lesion is painted, before any image is read.

    Attributes:
        lesion: the row of lesions.csv.
        host, donor: numbers of the regions that receive the lesion and give its crop.
        area: bool (size, size), the pixels of the lesion in the image.
        rng: draws the crop.
    """

    lesion: Lesion
    host: int
    donor: int
    area: NDArray[np.bool_]
    rng: np.random.Generator


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
    row, column = int(rows[chosen]), int(columns[chosen])
    waves, phases = rng.uniform(0, 0.12, 4), rng.uniform(0, 2 * np.pi, 4)
    radius = np.sqrt(share * tissue.size / np.pi)
    reach = int(radius * (1 + waves.sum())) + 1
    top, left = max(0, row - reach), max(0, column - reach)
    near = np.s_[top : row + reach + 1, left : column + reach + 1]
    height, width = tissue[near].shape
    y, x = np.ogrid[top - row : top - row + height, left - column : left - column + width]
    angle = np.arctan2(y, x)
    wave = 1 + sum(waves[n] * np.cos((n + 1) * angle + phases[n]) for n in range(4))
    lesion = np.zeros_like(tissue)
    lesion[near] = (np.hypot(y, x) < radius * wave) & tissue[near]
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
        rule = rule.model_copy(update={"tissue": tissue.name})
        self.model, self.rule, self.seed = model, rule, seed
        self.label = tissue.index
        self.regions = load_region_set(store, regions)
        self.bank = RegionBank(store, self.regions, ("train",), record)
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

    def record(self, n: int) -> LesionsRecord:
        """Return the record of the first `n` lesions."""
        return LesionsRecord(
            **self.rule.model_dump(),
            model=str(self.model.record.ref),
            regions=self.regions.name,
            n=n,
            seed=self.seed,
            inputs={
                "weights": record_sha256(self.model.record),
                "training regions": record_sha256(self.regions),
            },
        )

    def choose(self, number: int) -> Place:
        """Choose the place of a lesion, by label maps alone.

        Args:
            number: number of the lesion.

        Raises:
            InputError: the regions that may receive the lesion hold too little tissue.
        """
        size, rule = self.model.record.size, self.rule
        background = self.model.record.classes.first > 0
        seed = image_seed(self.seed, number)
        rng = np.random.default_rng(seed)
        for _ in range(TRIES):
            host = int(self._hosts[rng.integers(len(self._hosts))])
            labels = self.bank.read_labels(host)
            x, y = rng.integers(len(labels) - size + 1, size=2).tolist()
            own = labels[y : y + size, x : x + size]
            tissue = own > 0 if background else np.ones(own.shape, bool)
            share = rng.uniform(rule.smallest, rule.largest)
            if not tissue.any():
                continue
            area = draw_lesion(tissue, share, rng)
            if rule.smallest <= area.mean() <= rule.largest:
                donor = int(self._donors[rng.integers(len(self._donors))])
                lesion = Lesion(
                    lesion_key(number), rule.tissue, round(float(area.mean()), 4),
                    str(self.bank.slides[host]), self.bank.keys[host], x, y,
                    self.bank.keys[donor], seed,
                )  # fmt: skip
                return Place(lesion, host, donor, area, rng)
        raise InputError(
            f"no place for a lesion of {rule.smallest:.0%} to {rule.largest:.0%} of an image was "
            f"found in {TRIES} tries: allow smaller ones"
        )

    def paint(self, chosen: Place) -> list[bytes]:
        """Paint a lesion; return the PNGs of `lesion_files`."""
        record, lesion, area = self.model.record, chosen.lesion, chosen.area
        region = self.bank.read(chosen.host)
        window = np.s_[lesion.y : lesion.y + record.size, lesion.x : lesion.x + record.size]
        image, before = region.image[window], region.labels[window]
        after = np.where(area, self.label, before).astype(np.uint8)
        crops = edit_crops(record, image, after, area, [self._crop(chosen)], lesion.seed)
        sampler = edit_sampler(self.model, after, crops, lesion.seed)
        painted = mark_png(
            encode_png(paint(sampler, image, area, self.rule.border)),
            Mark(str(record.ref), key=lesion.key, source="compositeWithTrainedAlgorithmicMedia"),
        )
        return [encode_png(image), encode_png(before), painted, encode_png(after)]

    def _crop(self, chosen: Place) -> Crop:
        """Cut a crop of the class out of the region that gives it."""
        record, rng = self.model.record, chosen.rng
        rule, size = CropRule.of(record.recipe.denoiser, record.classes), record.size
        donor = self.bank.read(chosen.donor)
        corner = place(donor.labels, self.label, size, rng)
        left, top = corner or (0, 0)
        window = np.s_[top : top + size, left : left + size]
        crop = take_typical_crop(
            donor.image[window], donor.labels[window], self.label, rule, rng, size
        )
        if crop is None:
            raise InputError(f"region {donor.key} lacks the {self.rule.tissue!r} of its table")
        return crop


def paint_lesions(painter: LesionPainter, n: int, out: Path) -> None:
    """Write `n` lesions into a folder, and lesions.csv, which says where each is from.

    What is there already of the same series stays. A row of the table is written after its images.

    Raises:
        InputError: the folder holds something else, or a lesion finds no place; then nothing is
            written.
    """
    series = Series(out / "lesions.json", painter.record(n), lesion_files)
    lesions = [painter.choose(number).lesion for number in range(n)]
    done = next((number for number in range(n) if series.lacks(number)), n)
    table = io.StringIO()
    csv.writer(table).writerows([Lesion._fields, *lesions[:done]])
    series.begin()
    write_whole(out / "lesions.csv", table.getvalue().encode())
    with (out / "lesions.csv").open("a", newline="", encoding="utf-8", buffering=1) as file:
        for number, lesion in enumerate(lesions[done:], done):
            if series.lacks(number):
                images = painter.paint(painter.choose(number))
                for name, png in zip(lesion_files(number), images, strict=True):
                    series.write(name, png)
            csv.writer(file).writerow(lesion)
