"""The client's transport: requests, pages, events and files over HTTP, and their errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from shared.contracts.explaining import describe
from shared.errors import HeteroTissueError, InputError
from shared.whole_files import whole

M = TypeVar("M", bound=BaseModel)
Item = TypeVar("Item", covariant=True)

MAX_WAIT_SECONDS = 60
"""The longest time that the gateway may let a request wait for its result."""
CHUNK = 1 << 20
"""Bytes of a file that are read or written at a time."""


class ServerError(HeteroTissueError):
    """The gateway cannot be reached, or failed; another try may help."""


class Problem(BaseModel):
    """What is read of a problem document (RFC 9457)."""

    detail: str
    remedy: str | None = None


class RefusedError(InputError):
    """The gateway refused a request.

    Attributes:
        problem: the problem document (RFC 9457) that the gateway answered.
    """

    def __init__(self, problem: dict[str, Any]) -> None:
        remedy = problem.get("remedy")
        super().__init__(problem["detail"] + (f" ({remedy})" if remedy else ""))
        self.problem = problem


class Page(Protocol[Item]):
    """One page of a list, and the cursor of the next page."""

    @property
    def items(self) -> tuple[Item, ...]: ...

    @property
    def next(self) -> str | None: ...

    @classmethod
    def model_validate_json(cls, json_data: bytes) -> Page[Item]: ...


class Transport:
    """An HTTP connection to a gateway.

    Every method raises `RefusedError` if the gateway refuses the request, and `ServerError` if
    the gateway fails or cannot be reached.

    Args:
        server: address of the gateway, without /v1.
        token: a token of the gateway.
    """

    def __init__(self, server: str, token: str) -> None:
        timeout = httpx2.Timeout(30.0, read=MAX_WAIT_SECONDS + 30.0)
        self._gateway = httpx2.Client(
            base_url=server, headers={"Authorization": f"Bearer {token}"}, timeout=timeout
        )
        self._others = httpx2.Client(timeout=timeout)  # other servers must not see the token

    def close(self) -> None:
        """Close the connection."""
        self._gateway.close()
        self._others.close()

    def send(
        self,
        method: str,
        path: str,
        body: BaseModel | None = None,
        *,
        headers: dict[str, str] | None = None,
        params: dict[str, str] | None = None,
    ) -> httpx2.Response:
        """Send a request, with `body` as JSON, and return the response.

        `path` is a path of the gateway: another server must not see the token.
        """
        if not path.startswith("/"):
            raise ServerError(f"{self._gateway.base_url} named {path!r}, which is not its own")
        content = None if body is None else body.model_dump_json(exclude_unset=True)
        typed = {"Content-Type": "application/json"} if content is not None else {}
        try:
            answer = self._gateway.request(
                method, path, content=content, headers=(headers or {}) | typed, params=params
            )
        except httpx2.TransportError as error:
            raise ServerError(f"{self._gateway.base_url} cannot be reached: {error}") from error
        return _checked(answer)

    def get(self, path: str, kind: type[M]) -> M:
        """Get `path` and return the record that answers."""
        return read_record(kind, self.send("GET", path).content)

    def post(
        self,
        path: str,
        kind: type[M],
        body: BaseModel | None = None,
        *,
        headers: dict[str, str] | None = None,
    ) -> M:
        """Post `body` and return the record that answers."""
        return read_record(kind, self.send("POST", path, body, headers=headers).content)

    def items(
        self, path: str, kind: type[Page[Item]], filters: dict[str, str | None] | None = None
    ) -> Iterator[Item]:
        """Yield the items of a list, page after page; filters that are None are not sent."""
        params = {name: value for name, value in (filters or {}).items() if value is not None}
        while True:
            with _readable(kind.__name__):
                page = kind.model_validate_json(self.send("GET", path, params=params).content)
            yield from page.items
            if page.next is None:
                return
            if page.next == params.get("cursor"):
                raise ServerError(f"{self._gateway.base_url} answered with the same page twice")
            params |= {"cursor": page.next}

    def watch(self, path: str, kind: type[M]) -> Iterator[M]:
        """Yield the records of an event stream until it ends."""
        try:
            with self._gateway.sse(path) as events:
                if not events.response.is_success:
                    events.response.read()
                    _checked(events.response)
                for event in events:
                    if event.event == "status":
                        yield read_record(kind, event.data)
        except httpx2.TransportError as error:
            raise ServerError(f"{self._gateway.base_url} broke off: {error}") from error

    def put_file(self, url: str, path: Path, start: int, size: int) -> httpx2.Response:
        """Put `size` bytes of a file, from byte `start` on, without holding them in memory."""
        headers = {"Content-Length": str(size)}
        try:
            answer = self._server(url).put(url, content=_part(path, start, size), headers=headers)
        except httpx2.TransportError as error:
            raise ServerError(f"sending {path} broke off: {error}") from error
        return _checked(answer)

    def download(self, url: str, path: Path) -> None:
        """Download a file to `path`, which appears only when the download is complete."""
        try:
            with whole(path) as part, self._server(url).stream("GET", url) as answer:
                if not answer.is_success:
                    answer.read()
                _checked(answer)
                with part.open("wb") as file:
                    for data in answer.iter_bytes(CHUNK):
                        file.write(data)
        except httpx2.TransportError as error:
            raise ServerError(f"{url} broke off: {error}") from error

    def _server(self, url: str) -> httpx2.Client:
        """Return the connection for a URL: a path of the gateway, or a link to the store."""
        return self._gateway if url.startswith("/") else self._others


def read_record(kind: type[M], data: str | bytes) -> M:
    """Read a record that a gateway has sent. Raises `ServerError` if it is another one."""
    with _readable(kind.__name__):
        return kind.model_validate_json(data)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        wrong = describe(error.errors()[0])
        raise ServerError(f"the gateway's answer is no {name}: {wrong}") from error


def _checked(answer: httpx2.Response) -> httpx2.Response:
    if answer.is_success:
        return answer
    if answer.headers.get("Content-Type") != "application/problem+json":
        raise ServerError(f"{answer.url.host} answered {answer.status_code}")
    detail = read_record(Problem, answer.content).detail
    if answer.is_server_error:
        raise ServerError(detail)
    raise RefusedError(answer.json())


def _part(path: Path, start: int, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while data := file.read(min(CHUNK, size)):
            size -= len(data)
            yield data
