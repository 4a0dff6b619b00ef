"""Copy a published version into this package, as a checkpoint for warm starts.

    python -m services.train.package_checkpoint STORE MODEL NAME

`services.train.warm_start` describes the checkpoints. An autoencoder that the package holds already
is left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from services.train.warm_start import embedded_vae, packaged_path, read_weights, student_of
from shared.contracts.train import PACKAGED
from shared.storage import Store, open_store


def package_checkpoint(store: Store, reference: str, path: Path) -> None:
    """Write the version `reference` (models/<name>/<version>) to `path`, in half precision."""
    weights, student = read_weights(store, reference), student_of(store, reference)
    tensors = {f"denoiser.{k}": v for k, v in weights.denoiser.items()}
    if not _is_embedded(weights.vae):
        tensors |= {f"vae.{k}": v for k, v in weights.vae.items()}
    meta = {
        "normalization": weights.normalization,
        "classes": weights.classes,
        "student": student and student.model_dump(mode="json"),
        "head_width": weights.head_width,
    }
    half = {name: value.to(torch.float16).contiguous() for name, value in tensors.items()}
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(safetensors.torch.save(half, {"heterotissue": json.dumps(meta)}))
    Path(file.name).replace(path)
    path.chmod(0o644)


def _is_embedded(vae: dict[str, Tensor]) -> bool:
    """Say whether these weights are those of the package's autoencoder, in half precision."""
    known = embedded_vae()
    return vae.keys() == known.keys() and all(
        torch.equal(value.half(), known[name].half()) for name, value in vae.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("model", help="<name>/<version>")
    parser.add_argument("name", choices=PACKAGED)
    arguments = parser.parse_args()
    path = packaged_path(arguments.name)
    package_checkpoint(open_store(arguments.store), f"models/{arguments.model}", path)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
