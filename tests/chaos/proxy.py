"""A TCP proxy before an S3 server that can do to its clients what a network and a server can."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from typing import Literal

Mode = Literal["pass", "refuse", "hang", "slow", "reset", "503", "507"]

METHODS = (b"GET ", b"PUT ", b"HEAD ", b"POST ", b"DELETE ")
SLOW_SECONDS = 0.15
CODES = {
    "503": (503, "SlowDown", "please reduce your request rate"),
    "507": (507, "XMinioStorageFull", "no space left on the disk"),
}


class Proxy:
    """Passes connections on to a port of this machine, in the way that `mode` says.

    Attributes:
        mode: pass; refuse: end each connection; hang: take all and answer nothing; slow: hold
            each piece back; reset: cut some connections in the middle; 503 and 507: answer some
            requests, for 507 those that write, with this status.
        share: the share of requests that 'reset' and '503' hit.
    """

    def __init__(self, target: int, seed: int = 0) -> None:
        self.target = target
        self.mode: Mode = "pass"
        self.share = 0.3
        self.port = 0
        self._chance = random.Random(seed)  # noqa: S311 - faults, no secret
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._up.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._up.set()
        self._loop.run_forever()
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if self.mode == "refuse":
                writer.transport.abort()
                return
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
            up = asyncio.ensure_future(self._pump(reader, back, writer))
            down = asyncio.ensure_future(self._pump(there, writer, None))
            _, pending = await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
            back.close()
        writer.close()

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        client: asyncio.StreamWriter | None,
    ) -> None:
        """Pass bytes on; `client` is the writer to the client if they come from it."""
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                mode = self.mode
                while self.mode == "hang":
                    await asyncio.sleep(0.1)
                if mode == "slow":
                    await asyncio.sleep(SLOW_SECONDS)
                hit = self._chance.random() < self.share
                if mode == "refuse" or (mode == "reset" and hit):
                    sink.transport.abort()
                    return
                if client is not None and mode in CODES and data.startswith(METHODS):
                    writes = data.startswith((b"PUT ", b"POST "))
                    if (hit or self.share == 1) if mode == "503" else writes:
                        client.write(_refusal(mode))
                        await client.drain()
                        return
                sink.write(data)
                await sink.drain()


def _refusal(mode: str) -> bytes:
    status, code, message = CODES[mode]
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return (
        f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    ).encode()
