"""The choice of a study's images, and the order in which each reader sees them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from shared.contracts.reader_study import KINDS, Kind

T = TypeVar("T")
H = TypeVar("H", bound=Hashable)

BLOCK = 6
"""Number of images of each kind in a block of a series."""


def share_out(total: int, room: Mapping[H, int]) -> dict[H, int]:
    """Divide a number among takers as evenly as their maxima allow.

    Args:
        total: number to divide; a remainder that no taker has room for is dropped.
        room: taker → greatest share.

    Returns:
        Taker → share.
    """
    shares = dict.fromkeys(room, 0)
    while total:
        takers = [name for name in room if shares[name] < room[name]]
        if not takers:
            break
        for name in takers[:total]:
            shares[name] += 1
        total -= min(total, len(takers))
    return shares


def class_shares(total: int, room: Mapping[Kind, Mapping[str, int]]) -> dict[Kind, dict[str, int]]:
    """Choose how many images of each class a study shows, for both kinds (real and synthetic).

    Both kinds get the same number of images of a class, and the classes get numbers as equal as
    the available images allow. If fewer than `total` images are found this way, each kind fills
    up with images of any class.

    Args:
        total: number of images of each kind.
        room: kind → class → number of images that can be shown.

    Returns:
        Kind → class → number of images.
    """
    classes = sorted({name for counts in room.values() for name in counts})
    full = {kind: {name: room[kind].get(name, 0) for name in classes} for kind in KINDS}
    common = share_out(total, {name: min(full[kind][name] for kind in KINDS) for name in classes})
    missing = total - sum(common.values())
    shares: dict[Kind, dict[str, int]] = {}
    for kind in KINDS:
        rest = share_out(missing, {name: full[kind][name] - common[name] for name in classes})
        shares[kind] = {name: common[name] + rest[name] for name in classes}
    return shares


def choose(
    wanted: Mapping[str, int],
    candidates: Sequence[tuple[str, str, T]],
    rng: np.random.Generator,
) -> list[T]:
    """Draw images at random; each comes from the set that has given the fewest so far.

    Args:
        wanted: class → number of images to draw.
        candidates: triples of set, class and image.
        rng: generator of all draws.
    """
    chosen: list[T] = []
    drawn = {name: 0 for name, _, _ in candidates}
    for tissue, count in wanted.items():
        bags: dict[str, list[T]] = {}
        for name, own, item in candidates:
            if own == tissue:
                bags.setdefault(name, []).append(item)
        bags = {name: [bag[i] for i in rng.permutation(len(bag))] for name, bag in bags.items()}
        for _ in range(count):
            name = min((name for name in bags if bags[name]), key=lambda name: drawn[name])
            drawn[name] += 1
            chosen.append(bags[name].pop())
    return chosen


def kind_sequences(images: int, readers: int, rng: np.random.Generator) -> list[list[Kind]]:
    """Draw the order of real and synthetic images for each reader.

    Every block of a series has equally many real and synthetic images. Every second reader has
    the opposite kind at every position, so that a position does not tell the kind.

    Args:
        images: number of images of each kind.
        readers: number of readers.
        rng: generator of all draws.
    """
    sequences: list[list[Kind]] = []
    while len(sequences) < readers:
        sequence: list[Kind] = []
        for start in range(0, images, BLOCK):
            block = list(KINDS) * min(BLOCK, images - start)
            sequence += [block[i] for i in rng.permutation(len(block))]
        opposite: list[Kind] = ["synthetic" if kind == "real" else "real" for kind in sequence]
        sequences += [sequence, opposite]
    return sequences[:readers]


def series(
    pictures: Mapping[Kind, Sequence[T]], readers: int, rng: np.random.Generator
) -> list[list[T]]:
    """Draw a series for each reader; each series shows every picture once.

    Args:
        pictures: kind → pictures; both kinds have the same number of pictures.
        readers: number of readers.
        rng: generator of all draws.
    """
    drawn = []
    for sequence in kind_sequences(len(pictures["real"]), readers, rng):
        left = {kind: [own[i] for i in rng.permutation(len(own))]
                for kind, own in pictures.items()}  # fmt: skip
        drawn.append([left[kind].pop() for kind in sequence])
    return drawn
