"""Phantom slides: H&E-like tissue with exact ground truth, made from a seed."""

from shared.phantom.slide import PHANTOM_CLASSES, PhantomFiles, Slide, write_phantom

__all__ = ["PHANTOM_CLASSES", "PhantomFiles", "Slide", "write_phantom"]
