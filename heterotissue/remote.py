"""Run requests on the workers of another machine, through its gateway."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from heterotissue.progress import show_progress
from shared.contracts.jobs import JobStatus
from shared.contracts.synthesize import DatasetRequest
from shared.errors import InputError

if TYPE_CHECKING:
    from heterotissue.client import Client


def connect(server: str) -> Client:
    """Open a client of the gateway at `server`, with the token in HTD_TOKEN.

    Raises:
        InputError: HTD_TOKEN is not set.
    """
    token = os.environ.get("HTD_TOKEN", "")
    if not token:
        raise InputError("--server needs a token of that gateway: set HTD_TOKEN")
    from heterotissue.client import Client

    return Client(server, token)


def make_dataset(client: Client, request: DatasetRequest) -> JobStatus:
    """Submit a dataset request, show its progress, and return the final status of its job."""
    submitted = client.submit_dataset(request)
    with show_progress(request.stage) as reporter:
        for status in client.watch_dataset(request.dataset):
            reporter.phase(status.job, 0, 1, status.shards_done, status.shards or 1)
            reporter.unit(status.job, "images", status.made, status.images, status.model)
    return client.job(submitted.job)


def retry(client: Client, job: str) -> JobStatus:
    """Retry a job, show its progress, and return its final status."""
    again = client.retry_job(job)
    with show_progress(again.stage) as reporter:
        for status in client.watch_job(again.job):
            reporter.phase(status.job, status.phase, status.phases, status.done, status.total or 1)
    return client.job(again.job)
