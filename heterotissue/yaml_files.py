"""Reading the YAML files that users write."""

from __future__ import annotations

from typing import Any

import yaml

from shared.errors import InputError


def parse_mapping(text: str, name: str) -> dict[str, Any]:
    """Parse a YAML document that holds a mapping of field names to values.

    Args:
        text: the document.
        name: name of the document, for error messages.

    Raises:
        InputError: the text is not valid YAML, or does not hold a mapping.
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{name} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{name} must hold fields, each written as `name: value`")
    return content
