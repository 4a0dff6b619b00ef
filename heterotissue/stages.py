"""Import of stages by name; a service and its dependencies are imported at its first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from shared.contracts.requests import REQUESTS
from shared.errors import InputError, MissingExtraError
from shared.jobs import Stage


def load_stage(name: str) -> Stage[Any]:
    """Import the stage `name` and create it.

    Raises:
        InputError: there is no such stage.
        MissingExtraError: the stage's dependencies are not installed.
    """
    if name not in REQUESTS:
        raise InputError(f"{name!r} is not a stage; stages are {', '.join(REQUESTS)}")
    try:
        module = import_module(f"services.{name}.stage")
    except ImportError as error:
        raise MissingExtraError(name, error) from error
    stage: Stage[Any] = getattr(module, f"{name.capitalize()}Stage")()
    return stage
