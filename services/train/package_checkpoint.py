"""Copy a published version into this package, as a checkpoint for warm starts.

    python -m services.train.package_checkpoint STORE MODEL NAME [--difference-from NAME]

`services.train.warm_start` describes the checkpoints. An autoencoder that the package holds already
is left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from services.train.differences import difference
from services.train.warm_start import (
    embedded_vae,
    packaged_path,
    packaged_tensors,
    read_weights,
    student_of,
)
from shared.contracts.train import PACKAGED
from shared.storage import Store, open_store
from shared.whole_files import write_whole


def package_checkpoint(store: Store, reference: str, path: Path, base: str | None = None) -> None:
    """Write a version, in half precision or as the difference from a packaged checkpoint.

    Args:
        store: holds the version.
        reference: models/<name>/<version>.
        path: the file to write.
        base: the checkpoint to be compared with.

    Raises:
        ValueError: the version has other layers than `base`.
    """
    weights, student = read_weights(store, reference), student_of(store, reference)
    tensors = {f"denoiser.{k}": v for k, v in weights.denoiser.items()}
    if not _is_embedded(weights.vae):
        tensors |= {f"vae.{k}": v for k, v in weights.vae.items()}
    meta = {
        "normalization": weights.normalization,
        "classes": weights.classes,
        "student": student and student.model_dump(mode="json"),
        "head_width": weights.head_width,
        "difference_from": base,
    }
    small = (
        {name: value.half() for name, value in tensors.items()}
        if base is None
        else difference(tensors, packaged_tensors(base)[1])
    )
    small = {name: value.contiguous() for name, value in small.items()}
    write_whole(path, safetensors.torch.save(small, {"heterotissue": json.dumps(meta)}))
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
    parser.add_argument("--difference-from", choices=PACKAGED)
    arguments = parser.parse_args()
    path, store = packaged_path(arguments.name), open_store(arguments.store)
    package_checkpoint(store, f"models/{arguments.model}", path, arguments.difference_from)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
