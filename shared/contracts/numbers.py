"""Numbers in contracts: `true` and `false` are none, though Python counts them as 1 and 0."""

from __future__ import annotations

from typing import Any, Literal

from pydantic_core import PydanticKnownError
from pydantic_core.core_schema import no_info_before_validator_function

_NUMBERS: dict[str, Literal["int_type", "float_type"]] = {"int": "int_type", "float": "float_type"}
"""Kind of a schema → kind of the error for a value that is no such number."""

_NO_SCHEMAS = {"cls", "config", "default", "metadata", "serialization"}
"""Keys of a schema that hold no schemas of values."""


def refuse_flags(schema: Any) -> Any:
    """Return a schema of pydantic in which each number refuses booleans.

    Args:
        schema: a core schema, or a part of one.
    """
    if isinstance(schema, list | tuple):
        return type(schema)(refuse_flags(item) for item in schema)
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") in _NUMBERS:
        return no_info_before_validator_function(_refuses(_NUMBERS[schema["type"]]), schema)
    fields = schema.get("fields")
    named = {name: refuse_flags(field) for name, field in fields.items()} if fields else {}
    return {
        key: value if key in _NO_SCHEMAS else named if key == "fields" else refuse_flags(value)
        for key, value in schema.items()
    }


def _refuses(error: Literal["int_type", "float_type"]) -> Any:
    def check(value: Any) -> Any:
        if isinstance(value, bool):
            raise PydanticKnownError(error)
        return value

    return check
