"""Cutting a slide's regions out of its pixels and its label map."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from shared.contracts.regions import RegionRule
from shared.imaging.label_map import LabelMap
from shared.imaging.region_sets import Region, RegionRow, pack_regions, put_regions, region_row
from shared.imaging.slide import DamagedError, Slide
from shared.imaging.windows import choose_windows
from shared.storage import Store, sha256


class CutRegions(NamedTuple):
    """What was cut out of a slide.

    Attributes:
        regions: number of regions.
        sha256: digest of their shard.
        damaged: number of regions that were left out because the slide is damaged there.
    """

    regions: int
    sha256: str
    damaged: int


def cut_regions(
    store: Store,
    name: str,
    slide_name: str,
    slide: Slide,
    labels: LabelMap,
    classes: int,
    rule: RegionRule,
) -> CutRegions:
    """Choose the regions of a slide, and write their table and their shard.

    Regions that touch a damaged place of the slide are left out.

    Args:
        store: receives the table and the shard.
        name: name of the region set.
        slide_name: name of the slide.
        slide: the open slide.
        labels: the slide's label map, at any resolution; it is read by nearest neighbour.
        classes: number of classes, background included.
        rule: rule that chooses the windows, with their size and mpp.
    """
    ratio = rule.mpp / labels.mpp
    side, stride = max(1, round(rule.size * ratio)), max(1, round(rule.stride * ratio))
    windows = choose_windows(labels.whole(), classes, side, stride, rule)
    size = (rule.size, rule.size)
    rows: list[RegionRow] = []

    def regions() -> Iterator[Region]:
        for window in windows:
            x = round(window.x * labels.mpp / slide.mpp)
            y = round(window.y * labels.mpp / slide.mpp_y)
            try:
                image = slide.read(x, y, size, rule.mpp)
            except DamagedError:
                continue
            key = f"{slide_name}_{x}_{y}"
            mask = labels.read(x, y, size, rule.mpp, (slide.mpp, slide.mpp_y))
            region = Region(key, slide_name, image, mask)
            rows.append(region_row(region, x, y, window, rule))
            yield region

    tar = pack_regions(regions())
    put_regions(store, name, slide_name, rows, tar)
    return CutRegions(len(rows), sha256(tar), len(windows) - len(rows))
