"""Reading the YAML files that people write: recipes, pipelines, names of tissue types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from shared.errors import InputError

MAX_VALUES = 100_000
"""Largest number of values of a document, with its aliases written out."""


def read_mapping(file: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping of field names to values.

    Raises:
        InputError: the file cannot be read, or `parse_mapping` refuses its content.
    """
    if not file.exists():
        raise InputError(f"{file} is not there")
    if not file.is_file():
        raise InputError(f"{file} is a folder or a device: give a YAML file")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    return parse_mapping(data, str(file))


def parse_mapping(data: bytes | str, name: str) -> dict[str, Any]:
    """Parse a YAML document that holds a mapping of field names to values.

    Args:
        data: the document.
        name: name of the document, for error messages.

    Raises:
        InputError: `parse_yaml` refuses the document, or it does not hold a mapping.
    """
    content = parse_yaml(data, name)
    if not isinstance(content, dict):
        kind = "nothing" if content is None else f"a {_KINDS.get(type(content), 'single value')}"
        raise InputError(f"{name} must hold fields, each written as `name: value`, not {kind}")
    return content


_KINDS: dict[type, str] = {list: "list", str: "text"}


def parse_yaml(data: bytes | str, name: str) -> Any:
    """Parse a YAML document into plain values.

    Args:
        data: the document.
        name: name of the document, for error messages.

    Raises:
        InputError: the document is not valid YAML, gives a field twice, or is too deep or large.
    """
    try:
        loader = yaml.SafeLoader(data)
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}, name) > MAX_VALUES:
            raise InputError(f"{name} holds more than {MAX_VALUES:,} values, with all its aliases")
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise InputError(f"{name} is not valid YAML: {_place(error)}") from error
    except yaml.YAMLError as error:  # bytes or characters that no YAML file may hold
        raise InputError(f"{name} is not a text file in UTF-8, as YAML must be") from error
    except RecursionError as error:
        raise InputError(f"{name} is nested too deeply") from error
    except (AttributeError, ValueError) as error:  # such as the dates 2026-13-01 and !!timestamp x
        raise InputError(f"{name} holds a value that cannot be read: {error}") from error


def _place(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f"{error.problem or error.context}" + (f" (line {mark.line + 1})" if mark else "")


def _count(node: yaml.Node, known: dict[int, int | None], name: str) -> int:
    """Count the values below a node, as often as aliases name them; refuse doubled fields."""
    if id(node) in known:
        count = known[id(node)]
        if count is None:
            raise InputError(f"{name} has an alias that holds itself")
        return count
    known[id(node)] = None
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        fields: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in fields:
                    line = key.start_mark.line + 1
                    raise InputError(f"{name} gives {key.value!r} twice, again in line {line}")
                fields.add(key.value)
            children += (key, value)
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    total = 1 + sum(_count(child, known, name) for child in children)
    known[id(node)] = total
    return total
