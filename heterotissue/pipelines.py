"""Pipeline files: YAML files with a list of requests, which are run in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from heterotissue.yaml_files import parse_mapping
from shared.contracts.base import Request, explain
from shared.contracts.requests import REQUESTS
from shared.errors import InputError


def load_pipeline(file: Path) -> list[Request]:
    """Read and check a pipeline file: a list `requests`, each with a `stage` and its fields.

    Raises:
        InputError: the file is missing, or a request is wrong; the message gives its number.
        ValidationError: `requests` is not a list of mappings.
    """
    if not file.is_file():
        raise InputError(f"{file} is not there")
    content = parse_mapping(file.read_text(), str(file))
    items = TypeAdapter(list[dict[str, Any]]).validate_python(content.get("requests"))
    requests = []
    for number, item in enumerate(items, 1):
        stage = item.pop("stage", None)
        if stage not in REQUESTS:
            raise InputError(f"{file}: request {number} has stage {stage!r}; use {list(REQUESTS)}")
        try:
            requests.append(REQUESTS[stage].model_validate(item))
        except ValidationError as error:
            raise InputError(f"{file}: request {number} ({stage}): {explain(error)}") from error
    return requests
