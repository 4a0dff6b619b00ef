"""URLs that let others put an object of a stated size.

The MinIO client signs the host alone, and then the server takes a body of any length.
"""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import quote, urlunsplit

from minio import Minio, signer
from minio.helpers import sha256_hash


def presign_put(
    client: Minio, bucket: str, name: str, query: dict[str, str], size: int, seconds: int
) -> str:
    """Return a URL to PUT exactly `size` bytes to, with a Content-Length that is signed (AWS v4).

    Args:
        client: MinIO client of the server, with the keys that sign.
        bucket, name: the object.
        query: further parameters of the URL.
        size: length of the body in bytes.
        seconds: time for which the URL is valid.
    """
    region, now = client._get_region(bucket), datetime.now(UTC)
    provider = client._provider
    keys = provider.retrieve() if provider else None
    if keys is None:
        raise ValueError("a client without keys cannot sign")
    if keys.session_token:
        query = {**query, "X-Amz-Security-Token": keys.session_token}
    scope = signer._get_scope(now, region, "s3")
    query = {
        **query,
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{keys.access_key}/{scope}",
        "X-Amz-Date": f"{now:%Y%m%dT%H%M%SZ}",
        "X-Amz-Expires": str(seconds),
        "X-Amz-SignedHeaders": "content-length;host",
    }
    url = client._base_url.build(method="PUT", region=region, bucket_name=bucket, object_name=name)
    signed = "&".join(f"{key}={quote(query[key], safe='-_.~')}" for key in sorted(query))
    headers = f"content-length:{size}\nhost:{url.netloc}"
    request = f"PUT\n{url.path}\n{signed}\n{headers}\n\ncontent-length;host\nUNSIGNED-PAYLOAD"
    text = signer._get_string_to_sign(now, scope, sha256_hash(request))
    key = signer._get_signing_key(keys.secret_key, now, region, "s3")
    return urlunsplit(
        url._replace(query=f"{signed}&X-Amz-Signature={signer._get_signature(key, text)}")
    )
