"""The device that networks run on."""

from __future__ import annotations


def choose_device(wanted: str) -> str:
    """Return a device as it is; for 'auto' a GPU if torch finds one, else 'cpu'."""
    if wanted != "auto":
        return wanted
    try:
        import torch
    except ImportError:
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"
