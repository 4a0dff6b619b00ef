"""Ship a published version with the package, as a checkpoint to warm-start from.

    python -m services.train.package_checkpoint STORE MODEL NAME

What each of them is: `services.train.warm_start`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import safetensors.torch
import torch

from services.train.warm_start import read_weights, shipped_path, student_of
from shared.contracts.train import SHIPPED
from shared.storage import ObjectStore, open_store


def write_shipped(store: ObjectStore, reference: str, path: Path) -> None:
    """Write a published version as a checkpoint to ship, in half precision."""
    weights, student = read_weights(store, reference), student_of(store, reference)
    tensors = {f"vae.{k}": v for k, v in weights.vae.items()}
    tensors |= {f"denoiser.{k}": v for k, v in weights.denoiser.items()}
    meta = {
        "normalization": weights.normalization,
        "classes": weights.classes,
        "student": student and student.model_dump(mode="json"),
    }
    half = {name: value.to(torch.float16).contiguous() for name, value in tensors.items()}
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(safetensors.torch.save(half, {"heterotissue": json.dumps(meta)}))
    Path(file.name).replace(path)
    path.chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("model", help="<name>/<version>")
    parser.add_argument("name", choices=SHIPPED)
    arguments = parser.parse_args()
    path = shipped_path(arguments.name)
    write_shipped(open_store(arguments.store), f"models/{arguments.model}", path)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
