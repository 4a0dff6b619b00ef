"""Contact sheets: rows of equal images with captions, label colours and a legend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shared.arrays import UInt8
from shared.imaging.codec import encode_png
from shared.imaging.marks import Mark, mark_png

Color = tuple[int, int, int]

GAP = 4
"""Pixels between images."""

LINE_HEIGHT = 18
"""Height of a line of text, pixels."""

INK = (40, 40, 48)
PAPER = (250, 250, 250)


def colorize(labels: UInt8, colors: Sequence[Color]) -> UInt8:
    """Colour a label map: uint8 (h, w) to RGB (h, w, 3)."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = np.asarray(colors, np.uint8)
    return table[labels]


def sheet(
    rows: Sequence[Sequence[UInt8]],
    row_names: Sequence[str],
    column_names: Sequence[str] = (),
    legend: Sequence[tuple[str, Color]] | None = None,
) -> UInt8:
    """Draw rows of equally large RGB images.

    Args:
        rows: images, uint8 (h, w, 3); rows may differ in length.
        row_names: captions on the left, one per row.
        column_names: captions above, one per column; empty for none.
        legend: names and colours of the legend below.

    Returns:
        uint8 RGB (height, width, 3).
    """
    font = ImageFont.load_default(12)
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    left = GAP + max((int(font.getlength(name)) for name in row_names), default=0) + GAP
    top = GAP + (LINE_HEIGHT if column_names else 0)
    entries = _legend_lines(legend or (), left + columns * (width + GAP) - 2 * GAP, font)
    bottom = LINE_HEIGHT * len(entries)
    size = (left + columns * (width + GAP), top + len(rows) * (height + GAP) + bottom)
    page = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(page)
    for column, name in enumerate(column_names):
        draw.text((left + column * (width + GAP), GAP), name, INK, font)
    for number, (row, name) in enumerate(zip(rows, row_names, strict=True)):
        y = top + number * (height + GAP)
        draw.text((GAP, y + height // 2 - 8), name, INK, font)
        for column, image in enumerate(row):
            page.paste(Image.fromarray(image), (left + column * (width + GAP), y))
    for line, items in enumerate(entries):
        y, x = size[1] - bottom + line * LINE_HEIGHT, GAP
        for name, color in items:
            draw.rectangle((x, y + 2, x + 11, y + 13), fill=color, outline=INK)
            draw.text((x + 16, y), name, INK, font)
            x += 30 + int(font.getlength(name))
    return np.asarray(page, np.uint8)


def _legend_lines(
    legend: Sequence[tuple[str, Color]],
    width: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> list[list[tuple[str, Color]]]:
    lines: list[list[tuple[str, Color]]] = []
    used = width
    for name, color in legend:
        need = 30 + int(font.getlength(name))
        if used + need > width:
            lines.append([])
            used = 0
        lines[-1].append((name, color))
        used += need
    return lines


def sheet_png(picture: UInt8, model: str, dataset: str | None = None) -> bytes:
    """Encode a sheet that shows synthetic images beside others, marked as such.

    Args:
        picture: uint8 RGB (height, width, 3), by `sheet`.
        model: `<name>/<version>` of the model that made the images.
        dataset: name of their dataset, if they have one.
    """
    mark = Mark(model, dataset, source="compositeWithTrainedAlgorithmicMedia")
    return mark_png(encode_png(picture), mark)
