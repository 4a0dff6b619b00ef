"""Settings of a process, from HTD_* environment variables and files of secrets."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

SECRETS = Path("/run/secrets")
"""Folder of a container's secrets, with one file `htd_<name>` per setting."""


def _user_cache() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return base / "heterotissue"


class Settings(BaseSettings):
    """The settings of a process: its store, its queue, its device and its limits.

    Every field is set by the environment variable `HTD_<NAME>`, or by the file
    `htd_<name>` in `SECRETS`. There are no default secrets: an S3 store without
    keys, and without a role of the workload, is an error.

    The fields, by the package that reads them:

        shared.storage    store, s3_*, cache_dir, cache_gb
        shared.jobs       threads, device, max_failures, max_starts
        shared.queue      broker_url, lease_seconds, reconcile_seconds, keep_images_days,
                          stop_seconds, units_per_process, visibility_timeout
        shared.serving    triton_url
        services.gateway  gateway_*
    """

    model_config = SettingsConfigDict(
        env_prefix="HTD_", extra="ignore", secrets_dir=SECRETS if SECRETS.is_dir() else None
    )

    store: str = Field("out/store", description="a directory, or s3://bucket/prefix")
    s3_endpoint: str = Field("", description="http(s)://host:port of the S3 server")
    s3_public_endpoint: str = Field(
        "",
        description="http(s)://host:port of the S3 server in presigned URLs, if clients reach it "
        "at another address; empty: HTD_S3_ENDPOINT",
    )
    s3_access_key: SecretStr = SecretStr("")
    s3_secret_key: SecretStr = SecretStr("")
    s3_region: str = "us-east-1"
    broker_url: SecretStr = Field(SecretStr(""), description="redis://[:password@]host:port/db")
    cache_dir: Path = Field(
        default_factory=_user_cache,
        description="folder of fetched files and known hashes; default: below the user's ~/.cache",
    )
    cache_gb: float = Field(
        20.0,
        gt=0,
        description="GB (10^9 bytes) that files fetched from an S3 store may take in the cache; "
        "those that were not used for longest make room",
    )
    triton_url: str = Field(
        "", description="host:port of Triton's gRPC; empty: sample in this process"
    )
    threads: int = Field(
        2, ge=1, description="CPU threads of a worker; their number decides how sums round"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    max_failures: int = Field(3, ge=1, description="number of errors that parks a unit")
    max_starts: int = Field(
        12, ge=1, description="number of starts that parks an unfinished unit (lost workers)"
    )
    lease_seconds: int = Field(60, ge=2, description="seconds that a lease outlives its worker")
    reconcile_seconds: float = Field(15.0, gt=0, description="seconds between reconciliations")
    keep_images_days: int = Field(
        30, ge=1, description="days after which single images are removed"
    )
    stop_seconds: int = Field(
        30,
        ge=0,
        description="seconds that a stopping worker has to finish its shard before giving it back",
    )
    units_per_process: int = Field(
        0,
        ge=0,
        description="units after which a worker's process is replaced, which gives all of its "
        "memory back, a GPU's too; 0: never",
    )
    visibility_timeout: int = Field(
        3600,
        ge=5,
        description="seconds after which an unfinished message goes to another worker too, which "
        "drops it if the first still holds the lease",
    )
    gateway_host: str = Field("127.0.0.1", description="address that the gateway listens on")
    gateway_port: int = Field(8000, ge=1, le=65535)
    gateway_key: SecretStr = Field(
        SecretStr(""),
        description="secret that signs tokens and sessions; all gateways of a store have the same",
    )
    gateway_requests_per_minute: int = Field(
        600, ge=1, description="requests that one token may send per minute"
    )
    gateway_connections: int = Field(
        1000, ge=1, description="connections of a gateway above which requests are refused"
    )
    gateway_proxies: str = Field(
        "",
        description="addresses or networks of the proxies whose X-Forwarded-For and -Proto are "
        "believed, separated by commas; empty: none",
    )
    gateway_networks: str = Field(
        "",
        description="encoders and VAEs beyond those in the package that requests over HTTP may "
        "name, separated by commas, such as uni_v2, hf-hub:owner/name or a VAE's hub id; workers "
        "fetch them from the hub",
    )
    log_level: str = "INFO"
    log_format: Literal["text", "json"] = Field(
        "text", description="text, or json: an object per line, with job, unit, tenant and trace"
    )
    otlp_endpoint: str = Field(
        "",
        description="http(s)://host:port of an OpenTelemetry collector that spans are sent to, by "
        "OTLP over HTTP; needs the extra `tracing`. Empty: none are sent",
    )

    @property
    def networks(self) -> frozenset[str]:
        """The names in `gateway_networks`."""
        return frozenset(filter(None, map(str.strip, self.gateway_networks.split(","))))


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Return the settings of this process, which are read once."""
    return Settings()
