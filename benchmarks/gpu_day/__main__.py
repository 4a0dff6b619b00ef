"""What does a recipe's model do on a GPU?  python -m benchmarks.gpu_day [--recipe R] [--minutes M]

One run, whose figures are written after every step, so that a run that is cut off tells what it has
found. The weights are untrained, because speed does not depend on them. The steps:

- versions of the GPU and of every package; the bf16 matrix product, as the peak;
- plans: TensorRT builds the denoiser and the decoder;
- errors: the engines against PyTorch in fp32, at three shapes;
- rows: a step of the denoiser at many batch sizes, kernel by kernel, as a CUDA graph, compiled,
  compiled ahead of time, and by TensorRT, with its share of the peak;
- kernels: shares of a step's time; the decoder; images in this process;
- triton: the real server with both engines, and a server that is killed under load;
- training: with --regions, the rest of the time trains the recipe, in segments.

Without a GPU everything runs on the CPU, to rehearse it. A step that the machine does not allow
leaves its reason.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_day import networks, plans, serving
from benchmarks.gpu_day.day import Day, packages
from benchmarks.gpu_day.networks import CLASSES, DEVICE, Step
from heterotissue.estimate import count_flops
from heterotissue.recipes import load_recipe
from services.deploy.onnx_graph import make_graph
from shared.contracts.models import ModelRecord, ModelRef
from shared.contracts.recipe import Recipe
from shared.diffusion.gpu import uncaptured
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.serving.protocol import MAX_ROWS, Part, engine_tensors
from shared.storage import DirectoryStore, Store, sha256_file

SIZES = (1, 4, 16, 64, 128, 256)
COMPILED = (16, 64)
PARTS: tuple[Part, ...] = ("denoiser", "vae_decoder")


def publish(store: Store, pipeline: HeteroTissuePipeline, recipe: Recipe) -> ModelRecord:
    """Put the networks into a store as version 1 of the model `day`."""
    ref, digests = ModelRef("day", "1"), {}
    with tempfile.TemporaryDirectory() as name:
        pipeline.save_pretrained(name, safe_serialization=True)
        for path in sorted(path for path in Path(name).rglob("*") if path.is_file()):
            key = path.relative_to(name).as_posix()
            store.put_file(ref.prefix + key, path)
            if path.suffix == ".safetensors":
                digests[key] = sha256_file(path)
    record = ModelRecord(
        model=ref.name, version=ref.version, classes=CLASSES, size=recipe.size, mpp=0.5,
        regions="none", run="none", recipe=recipe, warm_start=None, sha256=digests,
    )  # fmt: skip
    store.put_json(ref.key, record)
    return record


def versions() -> dict[str, Any]:
    """Return the versions of what runs here, and the name of the GPU."""
    return {
        "python": platform.python_version(),
        "gpu": torch.cuda.get_device_name() if DEVICE == "cuda" else None,
        "cuda": torch.version.cuda,
        "packages": packages(),
    }


class Measuring:
    """The steps, and what they share.

    Args:
        day: the run.
        recipe: the recipe.
        folder: folder for the store, plans and logs.
        sizes: batch sizes, in rows.
        least: seconds of each measurement on the server.
    """

    def __init__(
        self, day: Day, recipe: Recipe, folder: Path, sizes: tuple[int, ...], least: float
    ) -> None:
        self.day, self.recipe, self.folder = day, recipe, folder
        self.sizes, self.least = sizes, least
        self.exact = networks.make_networks(recipe)
        self.store = DirectoryStore(folder / "store")
        self.record = publish(self.store, self.exact, recipe)
        self.ours = networks.prepared(self.exact, recipe)
        self.engines: dict[Part, plans.PlanEngine] = {}
        self.most = 1.0

    def peak(self) -> float:
        self.most = networks.peak()
        return round(self.most / 1e12, 3)

    def plans(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for part in PARTS:
            engine, facts = plans.make_plan(part, self.exact, self.record, self.folder, self.store)
            self.engines[part], found[part] = engine, facts
        return found

    def errors(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        kind = torch.bfloat16 if self.recipe.precision == "bf16" else torch.float32
        for part in PARTS:
            inputs, _ = engine_tensors(part, self.exact, self.recipe.size)
            graph = make_graph(self.exact, part, inputs, kind).to(DEVICE)
            ways: dict[str, Callable[..., torch.Tensor]] = {"pytorch": graph}
            if part in self.engines:
                ways["tensorrt"] = self.engines[part]
            found[part] = {
                way: networks.errors(self.exact, self.recipe, part, compute)
                for way, compute in ways.items()
            }
        return found

    def rows(self, compiled: bool) -> dict[str, Any]:
        denoiser, found = self.ours.denoiser, {}
        sizes = tuple(size for size in COMPILED if size in self.sizes) if compiled else self.sizes
        with networks.inference(self.recipe):
            steps = {size: Step(denoiser, self.ours.vae, self.recipe, size) for size in sizes}
            with uncaptured(denoiser):
                one = count_flops(steps[sizes[0]]) / sizes[0]
            for size, step in steps.items():
                ways = networks.forward_ways(denoiser, compiled)
                if compiled:
                    ways = {name: way for name, way in ways.items() if "compiled" in name}
                elif engine := self.engines.get("denoiser"):
                    ways["tensorrt"] = plans.as_forward(engine, sorted(step.encoded), MAX_ROWS)
                found[str(size)] = networks.denoiser_times(step, size, one, self.most, ways)
        return {"gigaflops": round(one / 1e9, 2), **found}

    def ahead(self) -> dict[str, Any]:
        size = max(size for size in COMPILED if size in self.sizes)
        with networks.inference(self.recipe):
            step = Step(self.ours.denoiser, self.ours.vae, self.recipe, size)
            with uncaptured(step.denoiser):
                one = count_flops(step) / size
            package = networks.ahead_of_time(step, self.folder)
            return networks.denoiser_times(step, size, one, self.most, {f"{size} rows": package})

    def kernels(self) -> dict[str, float]:
        size = max(self.sizes)
        with networks.inference(self.recipe), uncaptured(self.ours.denoiser):
            return networks.kernel_shares(
                Step(self.ours.denoiser, self.ours.vae, self.recipe, size)
            )

    def decoder(self) -> dict[int, float]:
        with networks.inference(self.recipe):
            return networks.decoder_times(self.ours, self.recipe, self.sizes)

    def images(self) -> dict[int, float]:
        return networks.image_rates(self.ours, self.recipe, self.sizes)

    def triton(self) -> None:
        """Measure the server; its engines are steps of their own."""
        with serving.triton(self.folder) as server:
            for number, engine in enumerate(("pytorch", "tensorrt"), 1):
                if engine == "tensorrt" and not self.engines:
                    continue
                self.day.step(
                    f"triton {engine}", 30,
                    lambda: serving.measure(
                        server, self.record, engine, number, self.least  # type: ignore[arg-type]  # noqa: B023
                    ),
                )  # fmt: skip
            self.day.step(
                "triton killed", 20, lambda: serving.killed_under_load(server, self.record, 1)
            )


def train(day: Day, recipe: str, store: Path, regions: str) -> dict[str, Any]:
    """Train the recipe until the time ends; the same command goes on from its last segment."""
    command = [
        sys.executable, "-m", "heterotissue.cli", "train", "--store", str(store), "--regions",
        regions, "--model", "day", "--recipe", recipe, "--set", "recipe.segment_steps=200",
    ]  # fmt: skip
    try:
        code = subprocess.run(command, timeout=day.left, check=False).returncode
    except subprocess.TimeoutExpired:
        code = None
    kept = sorted(path.name for path in (store / "training").rglob("checkpoints/*"))
    return {"ended": code, "checkpoints": kept[-2:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="base", help="name or file of a recipe")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=Path, default=Path("out/gpu-day.json"))
    parser.add_argument("--most-rows", type=int, default=max(SIZES))
    parser.add_argument("--seconds", type=float, default=5.0, help="of a measurement on the server")
    parser.add_argument("--only", default="", help="names of steps, separated by commas")
    parser.add_argument("--store", type=Path, help="folder of a store with regions to train on")
    parser.add_argument("--regions", help="name of these regions")
    given = parser.parse_args()
    only = frozenset(filter(None, given.only.split(",")))
    day = Day(given.out, 60 * given.minutes, only)
    recipe = load_recipe(given.recipe)
    day.keep("date", datetime.now(UTC).date().isoformat())
    day.keep("recipe", {"name": given.recipe, "size": recipe.size})
    with tempfile.TemporaryDirectory(prefix="htd-gpu-day-") as name:
        sizes = tuple(size for size in SIZES if size <= given.most_rows)
        run = Measuring(day, recipe, Path(name), sizes, given.seconds)
        day.step("peak_teraflops", 0, run.peak)
        day.step("versions", 0, versions)
        day.step("plans", 60, run.plans)
        day.step("errors", 10, run.errors)
        day.step("rows", 20, lambda: run.rows(compiled=False))
        day.step("decoder", 10, run.decoder)
        day.step("images_per_second", 20, run.images)
        if DEVICE == "cuda":
            day.step("kernels", 10, run.kernels)
        day.step("triton", 60, run.triton)
        day.step("ahead_of_time", 60, run.ahead)
        day.step("compiled", 60, lambda: run.rows(compiled=True))
        if given.regions and given.store:
            day.step("training", 60, lambda: train(day, given.recipe, given.store, given.regions))


if __name__ == "__main__":
    main()
