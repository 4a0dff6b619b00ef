"""Pipeline files: YAML files with a list of requests, which are run in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from heterotissue.recipes import load_recipe
from shared.contracts.base import Request
from shared.contracts.explaining import did_you_mean, explain
from shared.contracts.requests import REQUESTS
from shared.errors import InputError, quoted
from shared.yaml_files import read_mapping


def load_pipeline(file: Path) -> list[Request]:
    """Read and check a pipeline file: a list `requests`, each with a `stage` and its fields.

    A recipe may be given by its name, or as a file beside the pipeline file.

    Raises:
        InputError: the file is missing or malformed, or a request is wrong; the message names the
            file, the number of the request, and the field.
    """
    content = read_mapping(file)
    for name in content:
        if name != "requests":
            hint = did_you_mean(str(name), ["requests"])
            raise InputError(f"{file}: there is no such field: {quoted(name)}{hint}")
    items = content.get("requests")
    if not isinstance(items, list) or not items:
        raise InputError(f"{file} needs a list `requests`, with items such as `stage: embed`")
    requests = []
    for number, item in enumerate(items, 1):
        try:
            requests.append(_request(item, file.parent))
        except InputError as error:
            raise InputError(f"{file}: request {number}{error}") from error
    return requests


def _request(item: Any, folder: Path) -> Request:
    """Check one request of a file in `folder`; messages continue `<file>: request <n>`."""
    if not isinstance(item, dict):
        raise InputError(f" must hold fields, such as `stage: embed`, not {quoted(str(item)[:60])}")
    stage = str(item.get("stage"))
    kind = REQUESTS.get(stage)
    if kind is None:
        raise InputError(f" has stage {quoted(stage[:60])}{did_you_mean(stage, list(REQUESTS))}")
    fields = {name: value for name, value in item.items() if name != "stage"}
    try:
        if isinstance(recipe := fields.get("recipe"), str):
            beside = folder / recipe
            fields["recipe"] = load_recipe(str(beside) if beside.is_file() else recipe)
        return kind.model_validate(fields)
    except ValidationError as error:
        raise InputError(f" ({stage}): {explain(error, kind)}") from error
    except InputError as error:
        raise InputError(f" ({stage}): {error}") from error
