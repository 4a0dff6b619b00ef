"""Short names for the types of NumPy arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]
"""Images (RGB, 0 to 255), label maps and masks."""

Float16 = NDArray[np.float16]
"""Unit vectors that are kept in bulk."""

Float32 = NDArray[np.float32]
"""Features, densities and other measurements in single precision."""

Float64 = NDArray[np.float64]
"""Shares, statistics and sums over many values."""

Int64 = NDArray[np.int64]
"""Indices, counts and coordinates."""
