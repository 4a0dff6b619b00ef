"""Opening a store by its address."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse

from minio.error import InvalidResponseError, S3Error
from urllib3.exceptions import HTTPError

from shared.errors import HeteroTissueError, InputError
from shared.settings import Settings, settings
from shared.storage.directory import DirectoryStore
from shared.storage.s3 import S3Store
from shared.storage.store import Store


class StoreError(HeteroTissueError):
    """The server of a store does not answer."""


def open_store(url: str | None = None, config: Settings | None = None) -> Store:
    """Open the store at `url`: a directory, or `s3://bucket[/prefix]`.

    Without `url`, the store of `config` is opened; without `config`, the process's settings
    are used. S3 servers and keys come from the settings `s3_*`.

    Raises:
        InputError: the address is malformed, or the keys are missing or refused.
        StoreError: the S3 server does not answer.
    """
    config = config or settings()
    url = url or config.store
    if "://" not in url:
        path = Path(url).expanduser()
        there = next(part for part in (path, *path.absolute().parents) if part.exists())
        if not there.is_dir():
            raise InputError(
                f"the store cannot be {url!r}, because {there} is a file: give a directory or "
                "s3://bucket/prefix"
            )
        return DirectoryStore(path)
    parsed = urlparse(url)
    if parsed.scheme != "s3" or not parsed.netloc:
        raise InputError(f"{url!r} is not a store: give a directory or s3://bucket/prefix")
    store = S3Store(parsed.netloc, parsed.path, config)
    try:
        store.create_bucket()
    except (InvalidResponseError, S3Error) as error:
        raise InputError(
            f"{config.s3_endpoint} refused the keys for bucket {parsed.netloc!r}: "
            "check HTD_S3_ACCESS_KEY and HTD_S3_SECRET_KEY"
        ) from error
    except ValueError as error:  # not a name that S3 allows
        raise InputError(f"{url!r} is not a store: {error}") from error
    except HTTPError as error:
        raise StoreError(
            f"the S3 server {config.s3_endpoint} (HTD_S3_ENDPOINT) does not answer: start it, or "
            "correct the address"
        ) from error
    return store
