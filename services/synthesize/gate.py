"""The privacy gate: which images a dataset refuses, because they repeat what is real.

An image is refused if too much of a crop reappears in it (`max_copied`), or if it is too near to a
region that its model was trained on (`min_distance`). The distance is that of an ImageNet encoder's
features, the least over the eight turns and mirror images of the image. Its unit is the median
distance from a training region to the nearest one of another slide: what real tissue keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from shared.arrays import Float32, UInt8
from shared.contracts.models import ModelRecord
from shared.contracts.synthesize import TRAINING_FEATURES, DatasetRequest, dataset_key
from shared.diffusion.crops import Crop
from shared.errors import InputError
from shared.imaging.augment import symmetry
from shared.imaging.copying import BLOCK, crop_copying
from shared.imaging.region_sets import RegionIndex, load_region_set
from shared.jobs import Context

if TYPE_CHECKING:
    from shared.encoders import Encoder

ENCODER = "efficientnet-lite0"
TURNS = 8
ENCODED_AT_ONCE = 64
UNIT_REGIONS = 1000
"""Greatest number of training regions whose nearest others give the unit of distance."""


@dataclass(frozen=True)
class Nearness:
    """How near an image is to what is real.

    Attributes:
        copied: greatest share of a crop's textured blocks that reappears; None: not measured.
        distance: distance to the nearest training region; None: not measured.
    """

    copied: float | None
    distance: float | None


class Gate:
    """Measures images, and says which a request refuses.

    Args:
        request: the request, with its bounds.
        context: context of the unit; its store holds what `prepare` wrote.
    """

    def __init__(self, request: DatasetRequest, context: Context) -> None:
        self._request = request
        self._encoder: Encoder | None = None
        if request.min_distance is not None:
            body = context.store.get(dataset_key(request.dataset, TRAINING_FEATURES))
            arrays = safetensors.numpy.load(body)
            self._known: Float32 = arrays["features"]
            self._unit = float(arrays["unit"][0])
            self._encoder = _encoder(context)

    def measure(self, image: UInt8, crops: Sequence[Crop]) -> Nearness:
        """Measure an image, uint8 RGB (size, size, 3), and the crops that it was made from."""
        copied = distance = None
        if self._request.max_copied is not None:
            shares = [crop_copying(image, c.pixels) for c in crops if len(c.pixels) >= BLOCK]
            copied = max(shares, default=0.0)
        if self._encoder is not None:
            views = np.stack([symmetry(image, which) for which in range(TURNS)])
            nearest = _distances(self._encoder.encode(views), self._known).min()
            distance = float(nearest) / self._unit
        return Nearness(copied, distance)

    def refuses(self, found: Nearness) -> bool:
        """Say whether an image is beyond a bound of the request."""
        copied, nearest = self._request.max_copied, self._request.min_distance
        return (copied is not None and found.copied is not None and found.copied > copied) or (
            nearest is not None and found.distance is not None and found.distance < nearest
        )


def prepare(request: DatasetRequest, model: ModelRecord, context: Context) -> None:
    """Encode the model's training regions, if the request bounds the distance to them.

    Features of an earlier request for the dataset are deleted.

    Raises:
        InputError: the store does not hold them any more, or they are fewer than two.
    """
    key = dataset_key(request.dataset, TRAINING_FEATURES)
    if request.min_distance is None:
        context.store.delete(key)
        return
    regions = RegionIndex(context.store, load_region_set(context.store, model.regions), "train")
    if len(regions) < 2:
        raise InputError(
            f"min_distance needs two training regions, but {model.regions!r} has {len(regions)}: "
            "leave it out"
        )
    encoder = _encoder(context)
    parts = []
    for start in range(0, len(regions), ENCODED_AT_ONCE):
        stop = min(start + ENCODED_AT_ONCE, len(regions))
        images = [_centre(regions[number].image, model.size) for number in range(start, stop)]
        parts.append(encoder.encode(np.stack(images)))
        context.progress(stop, len(regions), "training regions encoded")
    features = np.concatenate(parts)
    unit = np.array([_unit(features, np.array(regions.slides))])
    context.store.put(key, safetensors.numpy.save({"features": features, "unit": unit}))


def _encoder(context: Context) -> Encoder:
    from shared.encoders import load_encoder  # slow to import, and most datasets do without

    return load_encoder(ENCODER, context.store, device=context.device)


def _unit(features: Float32, slides: NDArray[np.str_]) -> float:
    """Return the median distance from a region to the nearest one of another slide.

    With a single slide, it is that to the nearest other region.
    """
    chosen = np.linspace(0, len(features) - 1, min(len(features), UNIT_REGIONS)).astype(int)
    found = []
    for number in chosen.tolist():
        others = slides != slides[number]
        if not others.any():
            others = np.arange(len(features)) != number
        found.append(float(_distances(features[[number]], features[others]).min()))
    return max(float(np.median(found)), 1e-6)


def _distances(queries: Float32, known: Float32) -> Float32:
    """Return the distances of queries (n, dim) to known features (m, dim): (n, m)."""
    squares = (
        np.square(queries).sum(1)[:, None] - 2 * queries @ known.T + np.square(known).sum(1)[None]
    )
    distances: Float32 = np.sqrt(np.maximum(squares, 0))
    return distances


def _centre(image: UInt8, size: int) -> UInt8:
    top, left = ((side - size) // 2 for side in image.shape[:2])
    return image[top : top + size, left : left + size]
