"""The device that networks run on."""

from __future__ import annotations

from shared.settings import Settings


def choose_device(config: Settings) -> str:
    """Return the device that the settings name; 'auto' is a GPU if torch finds one, else 'cpu'."""
    if config.device != "auto":
        return config.device
    try:
        import torch
    except ImportError:
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"
