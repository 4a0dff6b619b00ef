"""Kombu's Redis transport, for workers that outlive messages that nobody can read."""

from __future__ import annotations

import logging
import os
import ssl
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import certifi
from kombu.transport import redis

log = logging.getLogger(__name__)


CHECKS = {
    "none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED,
}  # fmt: skip


def split_tls(url: str) -> tuple[str, dict[str, Any] | None]:
    """Split a broker's address into one without TLS, and the options of TLS; None: it has none.

    The server's certificate is checked unless `ssl_cert_reqs` says else, which kombu by itself
    does not do; and this module's transport is taken for rediss:// too.

    Raises:
        ValueError: `ssl_cert_reqs` is not none, optional or required.
    """
    address = urlsplit(url)
    if address.scheme != "rediss":
        return url, None
    stated = dict(parse_qsl(address.query))
    check = stated.pop("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    if check not in CHECKS:
        raise ValueError(f"ssl_cert_reqs={check!r} is none of {', '.join(CHECKS)}")
    options = {
        "ssl_cert_reqs": CHECKS[check],
        "ssl_check_hostname": check == "required",
        "ssl_ca_certs": os.environ.get("SSL_CERT_FILE") or certifi.where(),
    }
    options |= {key: stated.pop(key) for key in list(stated) if key.startswith("ssl_")}
    return address._replace(scheme="redis", query=urlencode(stated)).geturl(), options


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
