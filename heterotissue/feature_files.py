"""Find the features files that another tool wrote."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from heterotissue.running import Target
from services.embed.imported import widths_of
from shared.contracts.embed import EmbedRequest, encoder_folder
from shared.errors import InputError
from shared.storage import content_hash, sha256

SUFFIXES = {".h5", ".hdf5"}
_NO_FEATURES = ("patches", "slide_features_")
"""Folders of TRIDENT's and CLAM's with .h5 files of other content, by how their names begin."""


def import_request(target: Target, cohort: str, encoder: str, folder: Path) -> EmbedRequest:
    """Make the request that imports a folder's features.

    The files stay in place if the request runs in this process; for workers they are uploaded.

    Args:
        target: where the request will run.
        cohort: name of the cohort.
        encoder: name of the encoder that made the features.
        folder: folder of .h5 files, or TRIDENT's or CLAM's output folder above it.

    Raises:
        InputError: `folder` is not there, holds no features, or holds those of several encoders.
    """
    place = find_features(folder, encoder).resolve()
    files = sorted(path for path in place.iterdir() if path.suffix.lower() in SUFFIXES)
    hashes = {}
    for path in files:
        # The job names a file that cannot be read, and goes on with the others.
        with suppress(OSError):
            if path.is_file():
                hashes[path.name] = content_hash(path)
    imported = str(place)
    if target.queued:
        together = sha256("".join(sorted(hashes.values())).encode())
        imported = f"incoming/features/{together[:16]}"
        for name in hashes:
            target.store.put_file(f"{imported}/{name}", place / name)
    return EmbedRequest(
        cohort=cohort, encoder=encoder, imported=imported, imported_sha256=hashes,
        imported_widths=widths_of(place, hashes) if target.queued else None,
    )  # fmt: skip


def find_features(folder: Path, encoder: str) -> Path:
    """Find the folder of features in the output folder of TRIDENT or CLAM.

    Args:
        folder: a folder of .h5 files, or a folder with one such folder somewhere below it.
        encoder: if several folders hold features, the one named `features_<encoder>` is taken.

    Raises:
        InputError: `folder` is not there, holds no features, or holds those of several encoders.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder} is not a folder" if folder.exists() else f"{folder} is not there"
        )
    if any(path.suffix.lower() in SUFFIXES for path in folder.iterdir()):
        return folder
    found = sorted({
        path.parent
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.parent.name.startswith(_NO_FEATURES)
    })  # fmt: skip
    named = [path for path in found if path.name == f"features_{encoder_folder(encoder)}"]
    if len(named) == 1 or len(found) == 1:
        return (named if len(named) == 1 else found)[0]
    if found:
        places = ", ".join(str(path) for path in found)
        raise InputError(f"{folder} holds features in several folders, give one of them: {places}")
    if any(folder.rglob("*.pt")):
        raise InputError(
            f"{folder} holds .pt files only, which do not say where patches lie: import the .h5 "
            "files (h5_files/ of CLAM, features_…/ of TRIDENT)"
        )
    raise InputError(f"{folder} holds no .h5 files with features")
