"""Copy a published version's autoencoder into the package, in half precision.

    python -m services.train.embed_autoencoder STORE MODEL

`make autoencoder` trains an autoencoder, then runs this module.
"""

from __future__ import annotations

import argparse

import torch

from shared.contracts.models import ModelRef
from shared.diffusion.autoencoder import EMBEDDED
from shared.diffusion.model_store import load_model
from shared.storage import open_store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("model", help="<name>/<version>")
    arguments = parser.parse_args()
    vae = load_model(
        open_store(arguments.store), ModelRef.parse(arguments.model), "cpu"
    ).pipeline.vae
    vae.register_to_config(_name_or_path="")
    vae.to(torch.float16).save_pretrained(EMBEDDED, safe_serialization=True)
    for path in EMBEDDED.iterdir():
        path.chmod(0o644)
    print(f"{EMBEDDED}: {sum(path.stat().st_size for path in EMBEDDED.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
