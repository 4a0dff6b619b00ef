"""Records that only the gateways can write, although others may write to the store.

Workers have keys of the store. A record of a token that one of them wrote would be a token, so
the gateways sign these records with a key that the store does not hold.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from shared.contracts.tenants import LINKS, REVOKED, SESSIONS
from shared.errors import InputError
from shared.settings import Settings
from shared.storage import DamagedObjectError, ObjectNotFoundError, Store

M = TypeVar("M", bound=BaseModel)

MIN_KEY_LENGTH = 32

log = logging.getLogger(__name__)


class Signed(BaseModel):
    """A stored record, and the HMAC-SHA256 of its object's key and its content."""

    record: dict[str, Any]
    mac: str


class SignedRecords:
    """The signed records of a store.

    Args:
        root: the store's root.
        key: the secret that all gateways of the store share.
    """

    def __init__(self, root: Store, key: str) -> None:
        self.root = root
        self._key = key.encode()

    @classmethod
    def of(cls, root: Store, config: Settings) -> SignedRecords:
        """Open a store's signed records. Raises `InputError` if HTD_GATEWAY_KEY is unfit."""
        key = config.gateway_key.get_secret_value().strip()
        if len(key) < MIN_KEY_LENGTH:
            raise InputError(
                f"HTD_GATEWAY_KEY is {'too short' if key else 'not set'}: set it to at least "
                f"{MIN_KEY_LENGTH} random characters, such as those of 'openssl rand -hex 32', "
                "and keep it, because tokens are valid with this key only"
            )
        return cls(root, key)

    def _mac(self, name: str, record: dict[str, Any]) -> str:
        content = json.dumps([name, record], sort_keys=True).encode()
        return hmac.new(self._key, content, hashlib.sha256).hexdigest()

    def put(self, name: str, record: BaseModel) -> None:
        """Store a record under the object key `name`."""
        plain = record.model_dump(mode="json")
        self.root.put_json(name, Signed(record=plain, mac=self._mac(name, plain)))

    def get(self, name: str, kind: type[M]) -> M:
        """Return a record.

        Raises:
            ObjectNotFoundError: there is none that we signed, or it is revoked.
        """
        try:
            signed = self.root.get_model(name, Signed)
            if hmac.compare_digest(self._mac(name, signed.record), signed.mac):
                record = kind.model_validate(signed.record)
                if self.root.exists(_mark(name)):
                    raise ObjectNotFoundError(self.root, name)
                return record
        except (ValidationError, DamagedObjectError):
            pass
        log.error("%s was not signed with this gateway's HTD_GATEWAY_KEY, and is ignored", name)
        raise ObjectNotFoundError(self.root, name)

    def all(self, prefix: str, kind: type[M]) -> Iterator[tuple[str, M]]:
        """Yield the keys and records of all objects that start with `prefix`."""
        for name in list(self.root.list(prefix)):
            try:
                yield name, self.get(name, kind)
            except ObjectNotFoundError:  # not signed, or deleted since the listing
                continue

    def revoke(self, name: str) -> bool:
        """Revoke a record for good, also if it is put back; say whether this is the first time."""
        now = json.dumps({"revoked": datetime.now(UTC).isoformat()})
        first = self.root.create(_mark(name), now.encode())
        self.root.delete(name)
        return first


def _mark(name: str) -> str:
    """Return the key of the mark of a revoked record; no signature is needed to take a right.

    Sessions and links end soon, so their marks lie beside them and are swept with them.
    """
    if name.startswith((SESSIONS, LINKS)):
        return name.removesuffix(".json") + ".revoked"
    return REVOKED + name.rpartition("/")[2]
