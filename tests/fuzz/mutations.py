"""Damage to files: bits, bytes, numbers, words, pieces that are lost, doubled, moved or swapped."""

from __future__ import annotations

import random
import struct

WORDS = (
    b"nan", b"inf", b"1e999", b"-1", b"0", b"-0.0", b"99999999999999999999", b"", b"\x00",
    b"\xff\xfe", b"\xef\xbb\xbf", b"null", b"true", b"[", b"]", b"[[", b"{}", b"{", b"}", b'"',
    b"<", b"/>", b"&", b"&amp;", b"&#0;", b"]]>", b"<!--", b"<!DOCTYPE a>", b"0,5", b",", b";",
    b"\t", b"\n", b"\r\n", b"'", b"*a", b"&a", b"!!python/object", b"? ", b": ", b"- ", b"%s",
    b"../../../etc/passwd", b"/etc/passwd", b"\\", b"\xc3\xa9", b"\xed\xa0\x80", b"\x80",
    "\u202e".encode(), b"Polygon", b"MultiPolygon", b"GeometryCollection", b"Spline", b"Ellipse",
)  # fmt: skip
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutate(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Damage a file in one to six places.

    Args:
        data: the file.
        others: files of the same kind, from which pieces are taken.
        rng: decides what is done.
    """
    body = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        _damage(body, others, rng)
    return bytes(body)


def _damage(body: bytearray, others: list[bytes], rng: random.Random) -> None:
    # Headers decide more than pixels do: half of the damage is done to the first 512 bytes.
    reach = len(body) if rng.random() < 0.5 else min(len(body), 512)
    at = rng.randrange(reach + 1)
    length = rng.choice((1, 1, 2, 4, 8, 16, 64))
    kind = rng.randrange(9)
    if kind == 0 and at < len(body):
        body[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        body[at : at + length] = rng.randbytes(length)
    elif kind == 2:
        body[at : at + rng.choice((0, 0, length))] = rng.choice(WORDS)
    elif kind == 3:
        layout = rng.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
        number = rng.choice(NUMBERS) & (256 ** struct.calcsize(layout) - 1)
        body[at : at + struct.calcsize(layout)] = struct.pack(layout, number)
    elif kind == 4:
        del body[at : at + length]
    elif kind == 5:
        body[at:at] = body[at : at + length] * rng.choice((1, 2, 50))
    elif kind == 6:
        other = rng.choice(others)
        begin = rng.randrange(len(other) + 1)
        body[at : at + length] = other[begin : begin + length * 4]
    elif kind == 7 and rng.random() < 0.3:
        del body[at:]
    else:
        _change_number(body, at, rng)


def _change_number(body: bytearray, at: int, rng: random.Random) -> None:
    """Change a number that is written as text, at or after a place."""
    digits = b"0123456789"
    while at < len(body) and body[at] not in digits:
        at += 1
    end = at
    while end < len(body) and body[end] in digits:
        end += 1
    if end > at:
        body[at:end] = rng.choice((b"0", b"-1", b"1e9", b"4294967296", b"0.5", b"1" * 400))
