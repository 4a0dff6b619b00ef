"""The choice of a study's images, and the order in which each reader sees them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from shared.contracts.reader_study import KINDS, Kind

T = TypeVar("T")
H = TypeVar("H", bound=Hashable)

BLOCK = 6
"""Images of each kind in a block of a series."""


def share_out(total: int, room: Mapping[H, int]) -> dict[H, int]:
    """Share `total` out as evenly as the room of each taker allows.

    Args:
        total: number to share; a rest without room is left over.
        room: maximum of each taker.
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
    """Return how many images of each class each kind gives.

    Both kinds give the same number of a class, spread evenly over the classes as far as there are
    images. Images that are then missing come from any class that has more.

    Args:
        total: images of each kind.
        room: kind → class → images that there are.
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
    """Draw images at random, from the sets in turn.

    Args:
        wanted: class → images.
        candidates: (set, class, image).
        rng: draws.
    """
    chosen: list[T] = []
    taken = {name: 0 for name, _, _ in candidates}
    for tissue, count in wanted.items():
        bags: dict[str, list[T]] = {}
        for name, own, item in candidates:
            if own == tissue:
                bags.setdefault(name, []).append(item)
        bags = {name: [bag[i] for i in rng.permutation(len(bag))] for name, bag in bags.items()}
        for _ in range(count):
            name = min((name for name in bags if bags[name]), key=lambda name: taken[name])
            taken[name] += 1
            chosen.append(bags[name].pop())
    return chosen


def kind_sequences(images: int, readers: int, rng: np.random.Generator) -> list[list[Kind]]:
    """Draw the order of kinds for each reader.

    Every block of a series has as many real images as synthetic ones, and every other
    reader has the opposite kind at every place: a place says nothing of the kind.

    Args:
        images: of each kind.
        readers: how many series.
        rng: draws.
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
    """Draw every reader's series; each shows every picture once.

    Args:
        pictures: kind → pictures, as many of each.
        readers: how many series.
        rng: draws.
    """
    drawn = []
    for sequence in kind_sequences(len(pictures["real"]), readers, rng):
        left = {kind: [own[i] for i in rng.permutation(len(own))]
                for kind, own in pictures.items()}  # fmt: skip
        drawn.append([left[kind].pop() for kind in sequence])
    return drawn
