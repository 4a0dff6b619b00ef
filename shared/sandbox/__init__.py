"""The sandbox: files of unknown origin are decoded in processes that can do nothing else.

A process that opens such files starts one small server (`server.py`), without secrets in its
environment. The server forks a child for each file. The child confines itself (`confine.py`),
opens the file, states facts as JSON, and answers requests with arrays in shared memory.
`open_sandboxed` is the caller's side; `SandboxedFiles` reads many files in one child, and
`read_document` parses a file whole. Formats live elsewhere: a class with `facts` and `read`.
"""

from shared.sandbox.confine import protections
from shared.sandbox.documents import Document, read_document
from shared.sandbox.files import ANSWER_BYTES, ReadError, SandboxedFile, open_sandboxed
from shared.sandbox.several import SandboxedFiles

__all__ = [
    "ANSWER_BYTES",
    "Document",
    "ReadError",
    "SandboxedFile",
    "SandboxedFiles",
    "open_sandboxed",
    "protections",
    "read_document",
]
