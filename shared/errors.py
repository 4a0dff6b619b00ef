"""Errors for people: each message says what was wrong, with which input, and what to do."""

from __future__ import annotations

from collections.abc import Iterable


def quoted(text: object) -> str:
    """Write a text in quotes, as it was typed; characters that cannot be seen are escaped."""
    seen = (sign if sign.isprintable() else repr(sign)[1:-1] for sign in str(text))
    return f"'{''.join(seen)}'"


def all_quoted(texts: Iterable[object]) -> str:
    """List texts as `quoted` writes them."""
    return ", ".join(map(quoted, texts))


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
