"""Phantom slides: H&E-like tissue with exact ground truth, made from a seed."""

from shared.phantom.banks import PHANTOM_CLASSES
from shared.phantom.files import PhantomFiles, write_phantom
from shared.phantom.slide import PhantomSlide

__all__ = ["PHANTOM_CLASSES", "PhantomFiles", "PhantomSlide", "write_phantom"]
