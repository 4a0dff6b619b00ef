"""Connections whose clients neither send nor read are closed; others are served."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from services.gateway import connections
from services.gateway.connections import Connection

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"


async def taken(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def endless(_: Request) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(10_000):
            await asyncio.sleep(0)
            yield b"x" * 65536

    return StreamingResponse(parts())


@pytest.fixture(scope="module")
def server() -> Iterator[uvicorn.Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections, "CHECK_SECONDS", 0.15)
        app = Starlette(routes=[Route("/", taken, methods=["POST"]), Route("/endless", endless)])
        server = uvicorn.Server(
            uvicorn.Config(app, port=0, log_config=None, http=Connection, ws="none")
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield server
        server.should_exit = True
        thread.join()


def port_of(server: uvicorn.Server) -> int:
    return int(server.servers[0].sockets[0].getsockname()[1])


@pytest.mark.parametrize(
    "said",
    [b"", b"P", HEAD[:-2], HEAD, HEAD + b"x" * 10],
    ids=["nothing", "a letter", "half of the headers", "no body", "part of the body"],
)
def test_who_does_not_send_a_whole_request_is_cut_off(server: uvicorn.Server, said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=20) as client:
        client.sendall(said)
        with suppress(ConnectionResetError):
            assert client.recv(100) == b""


def test_who_sends_steadily_is_served(server: uvicorn.Server) -> None:
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=20) as client:
        client.sendall(HEAD)
        for _ in range(10):
            time.sleep(0.05)
            client.sendall(b"x" * 100)
        answer = b""
        while not answer.endswith(b"1000") and (part := client.recv(1000)):
            answer += part
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"\r\n\r\n1000")


def test_who_does_not_read_is_cut_off(server: uvicorn.Server) -> None:
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=20) as client:
        client.sendall(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(1) == b"H"
        deadline = time.monotonic() + 20
        while server.server_state.connections:
            assert time.monotonic() < deadline
            time.sleep(0.02)
