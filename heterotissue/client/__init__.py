"""A client of the gateway's HTTP API; requests and answers are records of `shared.contracts`.

with Client("http://127.0.0.1:8000", token) as client:
    client.submit_dataset(DatasetRequest(dataset="d", model="lung", images=1000))
    for status in client.watch_dataset("d"):
        print(status.made)
    client.download_dataset("d", Path("d"))
"""

from heterotissue.client.client import Client
from heterotissue.client.http import RefusedError, ServerError

__all__ = ["Client", "RefusedError", "ServerError"]
