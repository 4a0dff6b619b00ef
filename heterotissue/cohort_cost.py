"""What a cohort of slides takes: hours, requests and storage, by the measured figures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.cluster.kmeans import RESTARTS
from services.cluster.patches import per_slide
from services.cluster.units import MEAN_SLIDES
from services.cluster.units import UNIT_PATCHES as ASSIGNED_TOGETHER
from services.embed.encoding import part_count
from shared.contracts.cluster import ClusterRequest
from shared.contracts.regions import RegionRule
from shared.errors import InputError, quoted

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "scale.json"
"""Measured figures, beside the source; `make bench-scale` makes them."""

SLIDE_BYTES, HASHED = 1e9, 1e9
"""Assumed: bytes of a slide, and bytes of it that a core reads and hashes in a second."""

PATCH_FLOPS = 3.7e11
"""Assumed: operations of the encoder per patch, of a network as large as UNI2-h: 681 million
weights, 265 tokens, two operations each, and attention."""

TERAFLOPS = 150.0
"""Assumed: sustained TFLOP/s of a GPU in the encoder, a fifth of what an H200 can at most."""

REGION_SECONDS, PIXEL_BYTES = 0.015, 2.0
"""Assumed: core seconds to cut and pack a region of 256 px, and bytes of a pixel in its PNGs."""

RECORD_BYTES = 1100
"""Bytes of a slide in the records of cohort and features, which each unit reads."""

TABLE_BYTES = 61
"""Bytes of a patch in its tables, at most: corner, tissue, classes, cluster, distance."""

PART_BYTES = 5 << 20
"""Bytes of a request that uploads a part of a large file."""


@dataclass(frozen=True)
class Cohort:
    """A cohort: the number of its slides and patches, and of the numbers of a feature."""

    slides: int
    patches: int
    dim: int = 1536
    side: int = 256


@dataclass(frozen=True)
class Machines:
    """Equal machines: how many, the cores of each, and the TFLOP/s that its GPU sustains."""

    number: int = 16
    cores: int = 16
    tflops: float = TERAFLOPS


@dataclass(frozen=True)
class Work:
    """The work of a stage; seconds are those of a core, and of a GPU."""

    units: int
    calls: float
    core_seconds: float
    gpu_seconds: float = 0.0

    def hours(self, machines: Machines) -> float:
        """Return the hours that machines take, where cores and GPUs work side by side."""
        cores = self.core_seconds / machines.cores
        return max(cores, self.gpu_seconds) / machines.number / 3600


def read_figures(path: Path) -> dict[str, Any]:
    """Read the measured figures. Raises `InputError` if the file lacks them."""
    try:
        figures: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} has no figures of benchmarks ({error}): give the file "
            "benchmarks/results/scale.json of the source with --figures, or run 'make bench-scale'"
        ) from error
    lacking = {"engine", "data_path", "clustering", "cohort"} - figures.keys()
    if lacking:
        raise InputError(
            f"{path} lacks the figures {quoted(', '.join(sorted(lacking)))}: run 'make bench-scale'"
        )
    return figures


def work_of(cohort: Cohort, machines: Machines, figures: dict[str, Any]) -> dict[str, Work]:
    """Return the work of each stage.

    A unit costs what it did in a cohort of small slides, and besides what its pixels, features
    and regions take.
    """
    parts = part_count(math.ceil(cohort.patches / cohort.slides))
    request, reading = samples(cohort), figures["clustering"]
    sampled = request.sample_per_slide * cohort.slides
    # All restarts have half of the clusters; the splits take about as much as a quarter of them.
    passes = request.iterations * (RESTARTS / 2 + RESTARTS / 8 + 1) * request.k / reading["k"]
    decoded = min(
        each["megapixels per processor second"]["ours"] for each in figures["data_path"].values()
    )
    small = max(cohort.slides / MEAN_SLIDES, cohort.patches / ASSIGNED_TOGETHER)
    assigned = round(min(cohort.slides, small))

    def work(kind: str, units: int, core_seconds: float, gpu_seconds: float = 0.0) -> Work:
        each = figures["cohort"]["slides"]["by kind of unit"][kind]
        calls, seconds = (units * each[name] / each["units"] for name in ("calls", "seconds"))
        return Work(units, calls, seconds + core_seconds, gpu_seconds)

    embed = work(
        "embed slide",
        cohort.slides * (parts + (parts > 1)),
        cohort.patches * cohort.side**2 / decoded / 1e6,
        cohort.patches * PATCH_FLOPS / machines.tflops / 1e12,
    )
    uploads = (1 + (parts > 1)) * cohort.patches * cohort.dim * 4 / PART_BYTES
    return {
        "ingest": work("ingest slide", cohort.slides, cohort.slides * SLIDE_BYTES / HASHED),
        "embed": Work(embed.units, embed.calls + uploads, embed.core_seconds, embed.gpu_seconds),
        "cluster: sample": work(
            "cluster sample", cohort.slides, cohort.patches / reading["patches read"]
        ),
        "cluster: fit": Work(
            1, 2.0 * cohort.slides, sampled * passes / reading["rows of an iteration"]
        ),
        "cluster: assign": work(
            "cluster assign", assigned, cohort.patches / reading["patches assigned"]
        ),
        "cluster: regions": work(
            "cluster regions", cohort.slides,
            cohort.slides * RegionRule().max_per_slide * REGION_SECONDS,
        ),
    }  # fmt: skip


def samples(cohort: Cohort) -> ClusterRequest:
    """Return the default clustering, with the patches that each slide gives."""
    request = ClusterRequest(run="estimate", cohort="estimate")
    each = per_slide(request, cohort.slides)
    return request.model_copy(update={"sample_per_slide": each})


def storage(cohort: Cohort) -> dict[str, float]:
    """Return the bytes of what lies in the store in the end."""
    rule = RegionRule()
    regions = cohort.slides * rule.max_per_slide
    return {
        "slides": cohort.slides * SLIDE_BYTES,
        "features": cohort.patches * (cohort.dim * 4 + 16.0),
        "tables of patches": cohort.patches * float(TABLE_BYTES),
        "samples": samples(cohort).sample_per_slide * cohort.slides * cohort.dim * 2.0,
        "regions": regions * rule.size**2 * PIXEL_BYTES,
    }


def moved(cohort: Cohort, work: dict[str, Work]) -> float:
    """Return the bytes that go between the store and the workers.

    A slide is fetched by each unit that reads its pixels, the features are read twice, and those
    of large slides are written twice and read once more.
    """
    parts = part_count(math.ceil(cohort.patches / cohort.slides))
    held = storage(cohort)
    records = sum(each.units for each in work.values()) * cohort.slides * RECORD_BYTES
    copies = 3 if parts == 1 else 5
    return (2 + parts) * held["slides"] + copies * held["features"] + held["regions"] + records


def lines(cohort: Cohort, machines: Machines, figures: dict[str, Any]) -> Iterator[str]:
    """Write the estimate, a line for each stage and for each kind of object."""
    work = work_of(cohort, machines, figures)
    each = f"{machines.cores} cores, a GPU of {machines.tflops:g} TFLOP/s"
    yield (
        f"{cohort.slides:,} slides, {cohort.patches:,} patches of {cohort.side} px, features of "
        f"{cohort.dim:,} numbers; {machines.number} machines with {each}"
    )
    yield f"{'':<18}{'units':>9}{'requests':>13}{'core-hours':>12}{'GPU-hours':>11}{'hours':>8}"
    total = 0.0
    for name, part in work.items():
        one = Machines(1, machines.cores, machines.tflops) if part.units == 1 else machines
        hours = part.hours(one)
        total += hours
        yield (
            f"{name:<18}{part.units:>9,}{part.calls:>13,.0f}{part.core_seconds / 3600:>12,.1f}"
            f"{part.gpu_seconds / 3600:>11,.1f}{hours:>8,.2f}"
        )
    calls = sum(part.calls for part in work.values())
    cores, gpus = (
        sum(getattr(part, name) for part in work.values()) / 3600
        for name in ("core_seconds", "gpu_seconds")
    )
    units = sum(part.units for part in work.values())
    yield f"{'in all':<18}{units:>9,}{calls:>13,.0f}{cores:>12,.1f}{gpus:>11,.1f}{total:>8,.2f}"
    for name, size in storage(cohort).items():
        yield f"{name:<18}{size / 1e9:>9,.0f} GB"
    carried = moved(cohort, work)
    speed = carried * 8 / (total * 3600) / machines.number / 1e9
    yield f"{'moved':<18}{carried / 1e9:>9,.0f} GB, {speed:.2f} Gbit/s for each machine"
    dates = ", ".join(sorted({figures[name]["date"] for name in ("engine", "cohort")}))
    yield f"measured {dates} on {figures['engine']['machine']}; docs/scale.md says what is assumed"
