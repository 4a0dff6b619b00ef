"""The queue over TLS: a server is trusted by its certificate only."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest
from pydantic import SecretStr

from shared.errors import InputError
from shared.queue.redis_state import connect
from shared.queue.transport import split_tls
from shared.queue.worker import make_app
from shared.settings import Settings


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 'localhost' that signed itself, and its key in one file."""
    path = tmp_path_factory.mktemp("tls") / "own.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "1", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost", "-keyout", path, "-out", path.with_suffix(".crt")],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path


def heard(certificate: Path, query: str, *, celery: bool) -> bytes:
    """Return the first bytes that a server hears from a client; b"" if it does not trust it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    words: list[bytes] = []

    def serve() -> None:
        first = listener.accept()[0]
        listener.close()  # a second try is refused
        first.settimeout(10)
        try:
            with context.wrap_socket(first, server_side=True) as client:
                words.append(client.recv(64))
        except OSError:
            words.append(b"")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        url = f"rediss://user:pw@localhost:{listener.getsockname()[1]}/0{query}"
        app = make_app(Settings(broker_url=SecretStr(url)))
        ask = app.connection_for_write().channel if celery else connect(url).ping
        with pytest.raises(Exception, match=r"."):  # it speaks no Redis
            ask()
        thread.join(10)
    return words[0]


@pytest.mark.parametrize("celery", [True, False])
def test_a_broker_is_trusted_by_its_certificate_only(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, celery: bool
) -> None:
    assert heard(certificate, "", celery=celery) == b""
    assert heard(certificate, "?ssl_cert_reqs=none", celery=celery).startswith(b"*")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_suffix(".crt")))
    assert heard(certificate, "", celery=celery).startswith(b"*")


def test_what_checks_nothing_is_not_guessed() -> None:
    assert split_tls("redis://h:1/0") == ("redis://h:1/0", None)
    with pytest.raises(InputError, match="is none of none, optional, required"):
        make_app(Settings(broker_url=SecretStr("rediss://h:1/0?ssl_cert_reqs=perhaps")))
