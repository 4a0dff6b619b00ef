"""Errors for people: each message says what was wrong, with which input, and what to do."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST = 300
"""Greatest number of characters of a given text that a message repeats."""

MOST = 20
"""Greatest number of texts that a message lists."""


def printable(text: object, keep: str = "") -> str:
    """Write a text so that a terminal shows it and obeys none of it.

    Args:
        text: the text, such as the name of a file.
        keep: characters that cannot be seen, but are meant; the others are escaped.
    """
    signs = (sign if sign.isprintable() or sign in keep else repr(sign)[1:-1] for sign in str(text))
    return "".join(signs)


def shortened(text: object) -> str:
    """Write what somebody gave as `printable` does, and only the beginning of a long text."""
    given = str(text)
    return printable(given[:LONGEST]) + ("…" if len(given) > LONGEST else "")


def quoted(text: object) -> str:
    """Write what somebody gave in quotes, as `shortened` does."""
    return f"'{shortened(text)}'"


def all_quoted(texts: Iterable[object]) -> str:
    """List texts as `quoted` writes them; of many, the first `MOST` and how many more there are."""
    given = list(texts)
    rest = len(given) - MOST
    return ", ".join(map(quoted, given[:MOST])) + (f" and {rest} more" if rest > 0 else "")


class HeteroTissueError(Exception):
    """Base of every error that this project raises on purpose."""


class InputError(HeteroTissueError):
    """An input that no retry will repair: a bad file, request or option.

    The job engine parks a shard that raises it at once, and the command line
    prints the message without a traceback.
    """


class JobError(HeteroTissueError):
    """A job that ended without its result."""


class UnavailableError(HeteroTissueError):
    """A server that does not answer at present; work waits for it instead of failing."""


class CancelledError(HeteroTissueError):
    """Raised inside a shard when its job has been cancelled."""


class HandedBackError(SystemExit):
    """Raised inside a unit when its worker is told to end before the unit does.

    It is no `Exception`, so that no handler of errors takes it for an error of the unit.
    """


class MissingExtraError(InputError):
    """A service's optional dependencies are not installed."""

    def __init__(self, extra: str, cause: ImportError) -> None:
        super().__init__(
            f"{cause.name or cause} is not installed here; it comes with the '{extra}' extra: "
            f"pip install 'heterotissue[{extra}]'"
        )
