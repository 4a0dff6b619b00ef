"""How long does writing a phantom slide take?  python benchmarks/phantom_speed.py [SIDE]"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from shared.phantom import write_phantom


def main() -> None:
    side = int(sys.argv[1]) if len(sys.argv) > 1 else 16384
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        files = write_phantom(Path(folder), "phantom", side, side, 0)
        seconds = time.perf_counter() - began
        sizes = {path.suffix: path.stat().st_size for path in (files.slide, files.geojson)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"side": side, "seconds": round(seconds, 1), "peak_gib": round(peak, 2),
                      "bytes": sizes}))  # fmt: skip


if __name__ == "__main__":
    main()
