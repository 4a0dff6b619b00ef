"""Faults of the world: a disk that is full, a server that does not answer."""

from __future__ import annotations

import errno
import sys

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
    if isinstance(error, OSError) and error.errno in _NUMBERS:
        return True
    return isinstance(error, UnavailableError | ConnectionError | TimeoutError) or _of_s3(error)


def _of_s3(error: BaseException) -> bool:
    # What is not imported has not raised the error, and importing it takes long.
    if "urllib3" in sys.modules:
        from urllib3.exceptions import HTTPError

        if isinstance(error, HTTPError):
            return True
    if "minio" not in sys.modules:
        return False
    from minio.error import InvalidResponseError, S3Error, ServerError

    if isinstance(error, S3Error):
        return error.code in _CODES
    if isinstance(error, InvalidResponseError):
        return "Response code: 5" in str(error)
    return isinstance(error, ServerError)
