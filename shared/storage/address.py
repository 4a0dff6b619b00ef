"""Opening a store by its address."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse

from shared.errors import HeteroTissueError, InputError, quoted
from shared.settings import Settings, settings
from shared.storage.directory import DirectoryStore
from shared.storage.store import Store


def open_store(url: str | None = None, config: Settings | None = None) -> Store:
    """Open the store at `url`: a directory, or `s3://bucket[/prefix]`.

    Without `url`, the store of `config` is opened; without `config`, the process's settings
    are used. S3 servers and keys come from the settings `s3_*`.

    Raises:
        InputError: the address is malformed, or the keys are missing or refused.
        HeteroTissueError: no S3 server answers.
    """
    config = config or settings()
    url = url or config.store
    if "://" not in url and not url.startswith("s3:"):  # not a folder of this name
        path = Path(url).expanduser()
        there = next(part for part in (path, *path.absolute().parents) if part.exists())
        if not there.is_dir():
            raise InputError(
                f"the store cannot be {quoted(url)}, because {there} is a file: give a "
                "directory or "
                "s3://bucket/prefix"
            )
        return DirectoryStore(path)
    parsed = urlparse(url)
    if parsed.scheme != "s3" or not parsed.netloc:
        raise InputError(f"{quoted(url)} is not a store: give a directory or s3://bucket/prefix")
    # Here, because the S3 client takes a fifth of a second to import.
    from minio.error import InvalidResponseError, S3Error
    from urllib3.exceptions import HTTPError

    from shared.storage.s3 import S3Store

    store = S3Store(parsed.netloc, parsed.path, config)
    try:
        store.create_bucket()
    except (InvalidResponseError, S3Error) as error:
        raise InputError(
            f"{config.s3_endpoint} refused the keys for bucket {quoted(parsed.netloc)}: "
            "check HTD_S3_ACCESS_KEY and HTD_S3_SECRET_KEY"
        ) from error
    except ValueError as error:  # not a name that S3 allows
        raise InputError(f"{quoted(url)} is not a store: {error}") from error
    except HTTPError as error:
        raise HeteroTissueError(
            f"no S3 server answers at {config.s3_endpoint}: start it, or check HTD_S3_ENDPOINT"
        ) from error
    return store
