"""Where networks run."""

from __future__ import annotations

from shared.settings import Settings


def choose_device(config: Settings) -> str:
    """The device that the settings name; for 'auto' a GPU, where torch finds one."""
    if config.device != "auto":
        return config.device
    try:
        import torch
    except ImportError:
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"
