"""Checks a store after faults: it reads the files below the S3 server, with no code of the engine.

Every image is there once, all bytes are those of a run without faults, the manifest and every
hash are right, no job is open, and nothing is left over.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

LEFTOVERS = (".part", ".partial", ".tmp")


@dataclass
class Verdict:
    """What is wrong with datasets.

    Attributes:
        faults: one line for each fault.
        lost: images that should be there and are not, or are not as they should be.
        doubled: images that are there more than once.
    """

    faults: list[str] = field(default_factory=list)
    lost: int = 0
    doubled: int = 0


def check(folder: Path, tenant: str, dataset: str, images: int, wanted: dict[str, str]) -> Verdict:
    """Check one dataset and its jobs.

    Args:
        folder: the bucket's folder.
        tenant: folder of the tenant below it, or the empty text.
        dataset: name of the dataset.
        images: number of its images.
        wanted: path below the dataset's folder → SHA-256, from a run without faults.
    """
    verdict = Verdict()
    say = verdict.faults.append
    root = folder / tenant if tenant else folder
    place = root / "datasets" / dataset
    there = {
        path.relative_to(place).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in place.rglob("*")
        if path.is_file()
    }
    for name in sorted(wanted.keys() - there.keys()):
        say(f"{dataset}: {name} is missing")
    for name in sorted(there.keys() - wanted.keys()):
        say(f"{dataset}: {name} is left over")
    for name in sorted(wanted.keys() & there.keys()):
        if wanted[name] != there[name]:
            say(f"{dataset}: {name} has other bytes")
    _check_images(place, images, verdict)
    for record in sorted((root / "jobs").glob("*/request.json")):
        if json.loads(record.read_bytes())["request"].get("dataset") == dataset:
            _check_job(root, record.parent, say)
    return verdict


def _check_images(place: Path, images: int, verdict: Verdict) -> None:
    seen: Counter[int] = Counter()
    digests: dict[int, str] = {}
    for shard in sorted(place.glob("shards/*.tar")):
        try:
            with tarfile.open(shard) as tar:
                for member in tar:
                    name = member.name
                    if name.endswith(".png") and name.count(".") == 1:
                        seen[int(name[:-4])] += 1
                        data = tar.extractfile(member)
                        if data is not None:
                            digests[int(name[:-4])] = hashlib.sha256(data.read()).hexdigest()
        except tarfile.TarError as error:
            verdict.faults.append(f"{shard.name} is no tar: {error}")
    verdict.lost += len(set(range(images)) - seen.keys())
    verdict.doubled += sum(count - 1 for count in seen.values())
    if sorted(seen.elements()) != list(range(images)):
        verdict.faults.append(f"{place.name}: images {sorted(seen.elements())}")
    manifest = place / "manifest.parquet"
    if not manifest.is_file():
        return
    rows = pq.read_table(manifest).to_pylist()
    if sorted(row["index"] for row in rows) != list(range(images)):
        verdict.faults.append(f"{place.name}: the manifest has other images")
    for row in rows:
        if not (place.parents[1] / row["shard"]).is_file():
            verdict.faults.append(f"{place.name}: the manifest names {row['shard']}")
        if "sha256" in row and digests.get(row["index"]) != row["sha256"]:
            verdict.faults.append(f"{place.name}: image {row['index']} has other bytes")


def _check_job(root: Path, job: Path, say: object) -> None:
    """Check that a job is done, and that its markers and its result tell the truth."""
    assert callable(say)
    result = job / "result.json"
    if not result.is_file():
        say(f"{job.name} has no result")
        return
    end = json.loads(result.read_bytes())
    if end["state"] != "done":
        say(f"{job.name} ended {end['state']}: {end['failed']}")
        return
    markers = {path.stem: json.loads(path.read_bytes()) for path in job.glob("done/**/*.json")}
    plan = json.loads((job / "plan.json").read_bytes())
    planned = {
        shard["id"] for phase in plan["phases"] if isinstance(phase, list) for shard in phase
    }
    for path in job.glob("plan/*.ndjson"):
        planned |= {json.loads(line)["id"] for line in path.read_bytes().splitlines()}
    for path in job.glob("done/*.ndjson"):
        for line in map(json.loads, path.read_bytes().splitlines()):
            if line["marker"] != markers.get(line["unit"]):
                say(f"{job.name}: {path.name} is not what the marker of {line['unit']} says")
    if missing := planned - markers.keys():
        say(f"{job.name} is done without {sorted(missing)}")
    removed = {key for record in (*markers.values(), end) for key in record["removed"]}
    for record in (*markers.values(), end):
        for key, digest in record["outputs"].items():
            path = root / key
            if key in removed:
                continue
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                say(f"{job.name}: {key} is not what its marker says")
    if (root / "open-jobs" / job.name).exists():
        say(f"{job.name} is done and still open")


def leftovers(folder: Path) -> list[str]:
    """List files that are half-written, or belong to no job and no dataset."""
    return [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and any(part in path.name for part in LEFTOVERS)
    ]
