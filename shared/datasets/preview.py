"""The preview of a dataset: its first images below their label maps."""

from __future__ import annotations

from collections.abc import Sequence

from shared.arrays import UInt8
from shared.contracts.base import Classes
from shared.datasets.samples import Sample
from shared.imaging.sheet import colorize, sheet, sheet_png

PREVIEW_SAMPLES = 8
"""Number of images in a preview."""


def preview_png(
    samples: Sequence[Sample], classes: Classes, crops: Sequence[UInt8] | None = None
) -> bytes:
    """Draw a contact sheet of samples, one column each, and encode it as PNG.

    Args:
        samples: the samples.
        classes: classes of the label maps, for their colours and the legend.
        crops: uint8 RGB (h, w, 3) with the crops of each sample, for a row between the label
            maps and the images; None: no such row.
    """
    maps = [colorize(sample.labels, classes.colors) for sample in samples]
    rows = {"label map": maps, "crops": crops, "synthetic": [item.image for item in samples]}
    shown = {name: row for name, row in rows.items() if row is not None}
    picture = sheet(
        list(shown.values()),
        list(shown),
        [sample.provenance.key for sample in samples],
        legend=list(zip(classes.names, classes.colors, strict=True)),
    )
    made = samples[0].provenance
    return sheet_png(picture, made.model, made.dataset)
