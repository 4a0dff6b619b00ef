"""Logging to standard error, one line per event."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

from shared.tracing import trace_id

FIELDS = ("job", "unit", "tenant", "start")
"""Fields of a record that are written beside its message as JSON, where it has them."""


class JsonFormatter(logging.Formatter):
    """Writes a record as an object of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: getattr(record, name) for name in FIELDS if hasattr(record, name)},
            **({"trace": trace} if (trace := trace_id()) else {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logging(level: str = "INFO", form: Literal["text", "json"] = "text") -> None:
    """Send this project's log records to standard error at `level`."""
    logging.basicConfig(
        level=level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        force=True,
    )
    if form == "json":
        logging.getLogger().handlers[0].setFormatter(JsonFormatter())
    for noisy in ("urllib3", "PIL", "matplotlib", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
