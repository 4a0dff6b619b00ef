"""How well does an autoencoder reconstruct real tissue?

    python benchmarks/autoencoder.py STORE REGIONS [--vae embedded] [--split val] [--seeds 1]

Prints the PSNR and SSIM of reconstructions, and their Fréchet distance to real images of other
slides of the split beside that of the real images. This bounds every generator that uses the
decoder. With --seeds, segmenters are trained on real training images and on reconstructions of
them, and their mean IoU on the split's real images is printed too.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heterotissue.study import IMAGENET_ENCODERS
from services.evaluate.data import Pairs, RealPairs
from services.evaluate.fidelity import FeatureSet, fidelity
from services.evaluate.reconstruction import likeness, reconstruct
from services.evaluate.segmentation import (
    confusion,
    iou_scores,
    make_segmenter,
    train_segmenter,
)
from shared.computing import prepare
from shared.contracts.base import Classes, Split
from shared.contracts.evaluate import EvaluateRequest
from shared.contracts.recipe import VaeRecipe
from shared.contracts.regions import RegionSet
from shared.diffusion.autoencoder import make_vae
from shared.encoders import load_encoder
from shared.imaging.region_sets import RegionIndex, load_region_set
from shared.settings import settings
from shared.storage import Store, open_store

UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Reconstructed:
    """Reconstructions of real regions by an autoencoder, with the real label maps."""

    pairs: RealPairs
    images: UInt8

    def __len__(self) -> int:
        return len(self.pairs)

    def pair(self, number: int) -> tuple[UInt8, UInt8]:
        return self.images[number], self.pairs.pair(number)[1]

    def origins(self, number: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return self.pairs.origins(number)


def read(store: Store, record: RegionSet, split: Split) -> tuple[RealPairs, UInt8]:
    """Read the regions of a split, and their images, uint8 RGB (n, height, width, 3)."""
    index = RegionIndex(store, record, split)
    pairs = RealPairs(index, range(len(index)), np.arange(256, dtype=np.uint8))
    return pairs, np.stack([pairs.pair(number)[0] for number in range(len(pairs))])


def mean_iou(train: Pairs, test: Pairs, classes: Classes, seed: int) -> float:
    """Train a segmenter with the settings of `htd study`, and return its mean IoU on `test`."""
    asked = EvaluateRequest(report="none", dataset="none", seed=seed)
    size, batch = len(test.pair(0)[0]), asked.segmenter_batch
    model = make_segmenter(IMAGENET_ENCODERS[0], classes, seed)
    train_segmenter(
        model, train, first=classes.first, size=size, steps=asked.segmenter_steps, batch=batch,
        seed=seed, device="cpu", progress=lambda _: None,
    )  # fmt: skip
    counts = confusion(
        model, test, range(len(test)), classes=classes, size=size, batch=batch, device="cpu",
        progress=lambda _: None,
    )  # fmt: skip
    score = iou_scores(counts, classes.first).mean_iou
    assert isinstance(score, float)
    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("regions")
    parser.add_argument("--vae", default="embedded", help="or a folder in diffusers' format")
    parser.add_argument("--split", default="val")
    parser.add_argument("--encoders", nargs="+", default=IMAGENET_ENCODERS)
    parser.add_argument("--seeds", type=int, default=0, help="segmenters of either kind")
    given = parser.parse_args()
    prepare(settings().threads)
    store = open_store(given.store)
    record = load_region_set(store, given.regions)
    test, images = read(store, record, given.split)
    through = reconstruct(make_vae(VaeRecipe(pretrained=given.vae)).eval(), "cpu")
    made = through(images)
    scores = likeness(zip(images, made, strict=True))
    figures: dict[str, Any] = {
        "n": scores.n,
        "psnr": round(scores.psnr, 2),
        "ssim": round(scores.ssim, 3),
    }
    slides = [(slide,) for slide in test.regions.slides]
    for name in given.encoders:
        encoder = load_encoder(name, store)
        real, given_back = (
            FeatureSet(encoder.encode(pixels)[:, None], slides) for pixels in (images, made)
        )
        rows = fidelity(real, {"reconstruction": given_back}, 0).rows
        figures[name] = {row: round(value.frechet, 1) for row, value in rows.items()}
    if given.seeds:
        train, real_images = read(store, record, "train")
        again = Reconstructed(train, through(real_images))
        sources: dict[str, Pairs] = {"real": train, "reconstructed": again}
        for name, pairs in sources.items():
            found = [mean_iou(pairs, test, record.classes, seed) for seed in range(given.seeds)]
            figures[f"mean_iou_{name}"] = round(float(np.mean(found)), 4)
    print(json.dumps({"vae": given.vae, "split": given.split, **figures}))


if __name__ == "__main__":
    main()
