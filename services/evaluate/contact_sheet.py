"""The picture of a report: label maps, crops, synthetic images and their nearest real images."""

from __future__ import annotations

from collections.abc import Sequence

from services.evaluate.data import Material, centre, spread
from shared.arrays import UInt8
from shared.datasets.samples import draw_crops, recut_crops
from shared.imaging.region_sets import RegionIndex, load_region_set
from shared.imaging.sheet import colorize, sheet
from shared.storage import Store

COLUMNS = 8
"""Number of synthetic images on the sheet."""


def draw_sheet(store: Store, material: Material, neighbours: Sequence[tuple[int, int]]) -> UInt8:
    """Draw the sheet, uint8 RGB (height, width, 3).

    Args:
        store: holds the regions that crops are cut from.
        material: the compared images.
        neighbours: pairs of a synthetic image's number and the number of the training image
            nearest to it; if there are no pairs, the sheet shows no real images.
    """
    dataset = material.dataset
    index = material.synthetic.samples
    numbers = [sample for sample, _ in neighbours] or spread(len(index), COLUMNS)
    samples = [index[number] for number in numbers]
    crop_set = load_region_set(store, samples[0].provenance.crop_regions)
    crops = RegionIndex(store, crop_set, *dataset.request.crops.splits)
    rows = [
        [colorize(sample.labels, dataset.classes.colors) for sample in samples],
        [draw_crops(recut_crops(sample.provenance, crops), dataset.size) for sample in samples],
        [sample.image for sample in samples],
    ]
    names = ["requested map", "crops", "synthetic"]
    if neighbours:
        real = [material.train.pair(train)[0] for _, train in neighbours]
        rows.append([centre(image, dataset.size) for image in real])
        names.append("nearest real")
    legend = list(zip(dataset.classes.names, dataset.classes.colors, strict=True))
    picture: UInt8 = sheet(rows, names, [s.provenance.key for s in samples], legend=legend)
    return picture
