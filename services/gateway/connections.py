"""HTTP connections that are closed if their client neither sends nor reads."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

CHECK_SECONDS = 20.0
MIN_BYTES_PER_SECOND = 500

log = logging.getLogger(__name__)


class Connection(H11Protocol):
    """An HTTP connection with limits to how slow its client may be.

    A client has to send its request, headers and body, with at least `MIN_BYTES_PER_SECOND`, and
    to read some of the answer within `CHECK_SECONDS`. Else the connection is closed. Connections
    between two requests are closed by uvicorn.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arrived = 0
        self._state: tuple[Any, bool, bool] = (None, True, False)
        self._timer = self.loop.call_later(CHECK_SECONDS, self._check)

    def data_received(self, data: bytes) -> None:
        self._arrived += len(data)
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def _check(self) -> None:
        """Close the connection if it has been slow since the last check."""
        arrived, self._arrived = self._arrived, 0
        cycle = self.cycle
        answering = cycle is not None and not cycle.response_complete
        sending = (not answering or cycle.more_body) and self.timeout_keep_alive_task is None
        before, self._state = self._state, (cycle, sending, self.flow.write_paused)
        same = before[0] is cycle
        slow = arrived < MIN_BYTES_PER_SECOND * CHECK_SECONDS and not self.flow.read_paused
        stuck = before[2] and self.flow.write_paused
        if same and ((before[1] and sending and slow) or stuck):
            log.warning("closing the connection of %s, which is too slow", self.client)
            self.transport.abort()
            return
        self._timer = self.loop.call_later(CHECK_SECONDS, self._check)
