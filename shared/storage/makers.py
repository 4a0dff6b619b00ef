"""Which command makes an object, by its key."""

from __future__ import annotations

from pathlib import PurePosixPath

_INGEST = "'htd ingest --cohort {}'"
_OWN_INGEST = "'htd ingest' of its cohort"

MAKERS = {
    "cohorts": _INGEST,
    "patches": _INGEST,
    "tiles": "'htd tiles --cohort {}'",
    "slides": _OWN_INGEST,
    "sources": _OWN_INGEST,
    "annotations": _OWN_INGEST,
    "regions": "'htd ingest' or 'htd tiles' with --cohort {0}, or 'htd cluster --run {0}'",
    "features": "'htd embed --encoder {} --cohort {}'",
    "clusters": "'htd cluster --run {}'",
    "models": "'htd train --model {}'",
    "datasets": "'htd synthesize --dataset {}'",
    "reports": "'htd evaluate --report {}'",
}
"""First part of a key → the command that makes the object; the next parts are its names."""


def maker(key: str) -> str | None:
    """Return the command that makes an object, in quotes; None if it is not known."""
    kind, *names = PurePosixPath(key).parts or ("",)
    command = MAKERS.get(kind)
    try:
        return command and command.format(*(name.removesuffix(".json") for name in names))
    except IndexError:  # a key without the names that those of this kind have
        return None
