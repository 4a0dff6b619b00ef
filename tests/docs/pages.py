"""The pages of the documentation, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "tests" / "README.md",
    ROOT / "triton_models" / "README.md",
]

MARKS = frozenset({"cluster", "data", "docker", "gpu", "minutes", "servers"})
"""What a block may need; tests/README.md explains each."""

BLOCK = re.compile(r"^(?:<!-- needs: (.*?) -->\n)?```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
HEREDOC = re.compile(r"<<(\w+)\n.*?^\1$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        place: page and line, for messages.
        language: what follows the fence, such as `sh`; may be empty.
        needs: its marks; without any, a shell block runs in the walk.
    """

    page: str
    place: str
    language: str
    text: str
    needs: frozenset[str]


def name(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page in any of these languages; all of them if none is named."""
    text = page.read_text()
    return [
        Block(
            page=name(page),
            place=f"{name(page)}:{text.count(chr(10), 0, found.start()) + 1}",
            language=found[2],
            text=found[3],
            needs=frozenset(re.split(r", *", found[1])) if found[1] is not None else frozenset(),
        )
        for found in BLOCK.finditer(text)
        if not languages or found[2] in languages
    ]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return BLOCK.sub("", page.read_text())


def spans(page: Path) -> list[str]:
    """The inline code of a page, with placeholders such as <name> as they are."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def lines(text: str) -> list[str]:
    """The commands of a shell block, one to a line, without here-documents and comments."""
    joined = HEREDOC.sub("", text).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def commands(line: str) -> Iterator[list[str]]:
    """The words of each command of a line: of both sides of a pipe, and of `a && b`.

    Variables before a command are left out, and so are the dots of an abridged one.
    """
    reader = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    reader.whitespace_split = True
    words: list[str] = []
    for word in [*reader, ";"]:
        if word and set(word) <= set("|&;<>"):
            if words:
                yield words
            words = []
        elif word != "…" and (words or not re.match(r"[A-Z_]+=", word)):
            words.append(word)
