"""Faults of the world: a disk that is full, a server that does not answer."""

from __future__ import annotations

import errno

from minio.error import InvalidResponseError, S3Error, ServerError
from urllib3.exceptions import HTTPError

from shared.errors import UnavailableError

_NUMBERS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENETDOWN,
    errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EPIPE, errno.EMFILE, errno.ENFILE,
}  # fmt: skip
_CODES = {
    "InternalError", "OperationAborted", "RequestTimeout", "RequestTimeTooSkewed",
    "ServiceUnavailable", "SlowDown", "SlowDownRead", "SlowDownWrite", "XMinioServerNotInitialized",
    "XMinioStorageFull",
}  # fmt: skip


def is_fault(error: BaseException) -> bool:
    """Say whether an error is a fault of the world, which goes away without another request."""
    if isinstance(error, S3Error):
        return error.code in _CODES
    if isinstance(error, InvalidResponseError):
        return "Response code: 5" in str(error)
    if isinstance(error, OSError) and error.errno in _NUMBERS:
        return True
    kinds = UnavailableError | ConnectionError | TimeoutError | HTTPError | ServerError
    return isinstance(error, kinds)
