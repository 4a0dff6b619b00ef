"""Damages real files and gives them to their parsers: `python -m tests.fuzz.run --inputs 20000`.

Each input ends in a result or in an error that the parser documents. Anything else is a fault:
another error, the end of the process, twenty seconds, or more memory than the limit. Parsers run in
children, and a child that ends is replaced. The first input of each kind of fault is kept.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path

from tests.fuzz.mutations import mutate
from tests.fuzz.targets import Target, make_targets

SECONDS = 20
"""Parsers in a sandbox have five of a processor, which a busy machine may take longer to give."""

MEMORY_BYTES = 3 << 30
"""Address space that a child may take beyond what it has when it begins."""

BATCH = 2000
STARTING_SECONDS = 300
"""Longest time until a child has made its seeds; the first one waits for all imports."""


@dataclass
class Figures:
    """What came of the inputs.

    Attributes:
        inputs: number of inputs by target.
        refused: number of inputs that were refused in the documented way.
        faults: what went wrong, by target and kind of fault; the first input of each is kept.
    """

    inputs: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    faults: dict[str, str] = field(default_factory=dict)


class TooLongError(BaseException):
    """An input took longer than `SECONDS`."""


def _too_long(*_: object) -> None:
    raise TooLongError


def _work(seed: int, start: int, stop: int, folder: Path, only: str, out: Connection) -> None:
    """Run inputs `start` to `stop` - 1, and send what came of each."""
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries write about damaged files
    targets = _targets(folder, only)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, _too_long)
    shares = [target.share for target in targets]
    out.send(None)
    for number in range(start, stop):
        rng = random.Random(f"{seed}/{number}")  # noqa: S311 - damage, no secret
        target = rng.choices(targets, shares)[0]
        name = rng.choice(sorted(target.seeds))
        data = mutate(target.seeds[name], list(target.seeds.values()), rng)
        path = folder / name
        path.write_bytes(data)
        out.send((number, target.name, name, "begun", "", b""))
        signal.setitimer(signal.ITIMER_REAL, SECONDS, SECONDS)
        try:
            target.run(path)
        except target.refusals:
            verdict, text = "refused", ""
        except TooLongError:
            verdict, text = "fault", f"took more than {SECONDS} s"
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)
            own = [each for each in last if "site-packages" not in each.filename][-1]
            at = f"{own.filename}:{own.lineno}"
            verdict, text = "fault", f"{type(error).__name__} at {at}: {str(error)[:200]}"
        else:
            verdict, text = "read", ""
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        out.send((number, target.name, name, verdict, text, data if verdict == "fault" else b""))
        path.unlink(missing_ok=True)
    out.close()


def _targets(folder: Path, only: str) -> list[Target]:
    """Make the seeds in an empty folder; they are the same each time."""
    seeds = folder / "seeds"
    shutil.rmtree(seeds, ignore_errors=True)
    seeds.mkdir()
    return [each for each in make_targets(seeds) if only in each.name]


def fuzz(
    inputs: int,
    seed: int,
    only: str = "",
    keep: Path | None = None,
    progress: Callable[[Figures], object] = lambda _: None,
) -> Figures:
    """Give damaged inputs to the parsers.

    Args:
        inputs: number of inputs.
        seed: decides all damage; the same seed and number give the same input.
        only: part of the names of the targets to run; empty: all.
        keep: folder for the first input of each kind of fault.
        progress: called now and then with what came so far.
    """
    figures = Figures()
    # Not a fork of this process: it may hold locks of threads that a child does not have.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.fuzz.targets"])
    start = 0
    with tempfile.TemporaryDirectory(prefix="htd-fuzz-") as name:
        folder = Path(name)
        while start < inputs:
            stop = min(start + BATCH, inputs)
            source, sink = context.Pipe(duplex=False)
            child = context.Process(
                target=_work, args=(seed, start, stop, folder, only, sink), daemon=True
            )
            child.start()
            sink.close()
            if not source.poll(STARTING_SECONDS):
                raise RuntimeError(f"the child did not start in {STARTING_SECONDS} s")
            source.recv()
            begun = (start, "(none)", "")
            while start < stop:
                try:
                    if not source.poll(SECONDS * 3):
                        child.kill()
                    number, target, file, verdict, text, data = source.recv()
                except EOFError:
                    child.join()
                    number, target, file = begun
                    verdict, text = "fault", f"the process ended with {child.exitcode}"
                    path = folder / file
                    data = path.read_bytes() if path.is_file() else b""
                if verdict == "begun":
                    begun = (number, target, file)
                    continue
                start = number + 1
                figures.inputs[target] += 1
                figures.refused += verdict == "refused"
                if verdict == "fault":
                    kind = f"{target}: {text.partition(': ')[0]}"
                    if kind not in figures.faults:
                        figures.faults[kind] = f"input {number} ({file}): {text}"
                        if keep is not None:
                            keep.mkdir(parents=True, exist_ok=True)
                            (keep / f"{number}-{file}").write_bytes(data)
                    if "ended with" in text:
                        break
            source.close()
            child.join(5)
            child.kill()
            progress(figures)
    return figures


def main(arguments: list[str] | None = None) -> int:
    """Fuzz, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of a target's name")
    parser.add_argument("--keep", type=Path, default=Path("out/fuzz"))
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the figures")
    options = parser.parse_args(arguments)
    began = time.monotonic()

    def report(figures: Figures) -> str:
        inputs = dict(sorted(figures.inputs.items()))
        found = {
            "inputs": sum(inputs.values()), "by_target": inputs, "refused": figures.refused,
            "faults": figures.faults, "seed": options.seed,
            "seconds": round(time.monotonic() - began), "date": f"{datetime.now(UTC):%Y-%m-%d}",
        }  # fmt: skip
        text = json.dumps(found, indent=1)
        if options.out:
            options.out.write_text(text + "\n")
        return text

    figures = fuzz(options.inputs, options.seed, options.only, options.keep, report)
    print(report(figures))
    return 1 if figures.faults else 0


if __name__ == "__main__":
    sys.exit(main())
