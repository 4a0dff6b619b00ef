"""How well does an autoencoder give real tissue back?

    python benchmarks/autoencoder.py STORE REGIONS [--vae embedded] [--split val]

Prints PSNR, SSIM and the Fréchet distance of reconstructions to other slides of the split, with
that of the real images themselves: no generator is better than its decoder.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from services.evaluate.fidelity import Features, fidelity
from services.evaluate.reconstruction import likeness, reconstruct
from services.gateway.study import MEASURES
from shared.contracts.train import VaeRecipe
from shared.diffusion.autoencoder import make_vae
from shared.encoders import load_encoder
from shared.imaging.regions import RegionIndex, load_region_set
from shared.settings import settings
from shared.storage import open_store
from shared.threads import limit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("regions")
    parser.add_argument("--vae", default="embedded", help="or a folder in diffusers' format")
    parser.add_argument("--split", default="val")
    parser.add_argument("--encoders", nargs="+", default=MEASURES)
    given = parser.parse_args()
    limit(settings().threads)
    store = open_store(given.store)
    index = RegionIndex(store, load_region_set(store, given.regions), given.split)
    images = np.stack([index[number].image for number in range(len(index))])
    vae = make_vae(VaeRecipe(pretrained=given.vae)).eval()
    made = reconstruct(vae, "cpu")(images)
    scores = likeness(zip(images, made, strict=True))
    figures = {
        "n": scores["n"],
        "psnr": round(scores["psnr"], 2),
        "ssim": round(scores["ssim"], 3),
    }
    slides = [(slide,) for slide in index.slides]
    for name in given.encoders:
        encoder = load_encoder(name, store)
        real, given_back = (
            Features(encoder.encode(pixels)[:, None], slides) for pixels in (images, made)
        )
        rows = fidelity(real, {"reconstruction": given_back}, 0)["rows"]
        figures[name] = {row: round(value["frechet"], 1) for row, value in rows.items()}
    print(json.dumps({"vae": given.vae, "split": given.split, **figures}))


if __name__ == "__main__":
    main()
