"""Kombu's Redis transport, for workers that outlive messages that nobody can read."""

from __future__ import annotations

import logging
from typing import Any

from kombu.transport import redis

log = logging.getLogger(__name__)


class Channel(redis.Channel):
    """Drops a message that is no message of Celery; without this, it ends the worker."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("dropped a message that cannot be read: %r", error)
            return True


class Transport(redis.Transport):
    """The Redis transport with this module's channel."""

    Channel = Channel
