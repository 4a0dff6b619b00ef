"""A short schedule of faults, and a checker that sees what is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shared.jobs import Ledger, run_job
from shared.storage import DirectoryStore
from tests.chaos.checker import check
from tests.chaos.run import TINY, Figures, chaos, run_round, undisturbed
from tests.chaos.stage import ChaosRequest, ChaosStage

SCHEDULE = [
    "worker killed", "s3 answers 503", "redis killed and its data lost", "foreign messages",
    "stale messages",
]  # fmt: skip


SMALL = replace(TINY, request=lambda name: ChaosRequest(dataset=name, images=12))


def test_nothing_is_lost_or_doubled_under_faults(tmp_path: Path) -> None:
    figures = Figures()
    with chaos(tmp_path, seed=0, workers=2) as bench:
        run_round(bench, 0, SCHEDULE, figures, SMALL)
    assert figures.broken == []
    assert (figures.survived, figures.lost, figures.doubled) == (len(SCHEDULE), 0, 0)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A store with a finished dataset of four images, and the hashes of its files."""
    ledger, request = (
        Ledger(DirectoryStore(tmp_path)),
        ChaosRequest(dataset="d", images=4, seconds=0),
    )
    run_job(ledger, ChaosStage(), ledger.submit(request))
    assert check(tmp_path, "", "d", 4, undisturbed(request)).faults == []
    return tmp_path, undisturbed(request)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda root: (root / "datasets/d/shards/000001.tar").unlink(), "000001.tar is missing"),
        (lambda root: (root / "datasets/d/shards/000001.tar").write_bytes(
            (root / "datasets/d/shards/000000.tar").read_bytes()), "000001.tar has other bytes"),
        (lambda root: (root / "datasets/d/left").touch(), "left is left over"),
        (lambda root: next(root.glob("jobs/*/result.json")).unlink(), "has no result"),
        (lambda root: next(root.glob("jobs/*/done/shard*")).unlink(), "is done without"),
        (lambda root: (root / f"open-jobs/{next(root.glob('jobs/*')).name}").touch(),
         "is done and still open"),
    ],
)  # fmt: skip
def test_the_checker_sees_what_is_wrong(
    made: tuple[Path, dict[str, str]], damage: object, says: str
) -> None:
    root, wanted = made
    (root / "open-jobs").mkdir(exist_ok=True)
    assert callable(damage)
    damage(root)
    verdict = check(root, "", "d", 4, wanted)
    assert any(says in fault for fault in verdict.faults), verdict.faults


def test_the_checker_counts_lost_and_doubled_images(made: tuple[Path, dict[str, str]]) -> None:
    root, wanted = made
    shards = root / "datasets/d/shards"
    (shards / "000001.tar").write_bytes((shards / "000000.tar").read_bytes())
    verdict = check(root, "", "d", 4, wanted)
    assert (verdict.lost, verdict.doubled) == (2, 2)
