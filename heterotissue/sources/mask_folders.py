"""Folders of masks beside the folders of their tiles: train/images/x.png, train/masks/x.png."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from heterotissue.sources.annotations import stem_of

MASK_FOLDERS = {
    "mask", "masks", "label", "labels", "annotation", "annotations", "segmentation",
    "segmentations", "groundtruth", "ground_truth", "gt",
}  # fmt: skip
"""Names of folders whose images are masks of the tiles of their names in the folders beside."""


class MaskFolders:
    """The images of a folder of tiles that are masks by the names of their folders.

    Args:
        root: the folder that was searched; folders count that lie in it.
        paths: images that were found in it.
        unread: files that may be tiles, but are in formats that are not read. Images of their
            names are masks, too.

    Attributes:
        masks: those of them that are masks.
    """

    def __init__(self, root: Path, paths: Iterable[Path], unread: Iterable[Path] = ()) -> None:
        inside = [path for path in paths if path.parent != root]
        named = {path for path in inside if path.parent.name.lower() in MASK_FOLDERS}
        tiles = {_key(path) for path in (*inside, *unread) if path not in named}
        self.masks = {path for path in named if _key(path) in tiles}
        self._of: dict[tuple[Path, str], list[Path]] = defaultdict(list)
        for path in sorted(self.masks):
            self._of[_key(path)].append(path)

    def of(self, tile: Path) -> list[Path]:
        """List the masks that have the name of a tile, in the folders beside its own."""
        return self._of.get(_key(tile), [])


def _key(path: Path) -> tuple[Path, str]:
    """Return the folder above that of a file, and the file's name without its suffix."""
    return path.parent.parent, stem_of(path).lower()
