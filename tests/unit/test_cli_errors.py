"""What goes wrong at the command line ends in one line that names the option, never a traceback."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from urllib3.exceptions import MaxRetryError

from heterotissue import doctor
from heterotissue.cli.cohorts import tell
from heterotissue.sources import Refusal
from shared.contracts.base import Classes
from shared.contracts.ingest import CohortRecord, PatchGrid, cohort_key
from shared.contracts.regions import RegionRule
from shared.imaging.region_sets import region_table
from shared.settings import settings
from shared.storage import DirectoryStore
from tests.formats.cohort_files import write_slide
from tests.region_sets import make_region_set
from tests.unit.test_cli import htd


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder with a file, in which the commands are run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HTD_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("TERMINAL_WIDTH", "300")
    write_slide(tmp_path / "slide.png", 0, 8).rename(tmp_path / "file")
    (tmp_path / "deep.yaml").write_text("[" * 5000)
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ingest file --region-size 0", "--region-size"),
        ("ingest file --region-mpp 0", "error: --region-mpp 0: must be µm per pixel"),
        ("ingest file --mpp 0.00025", "error: --mpp 0.00025: must be µm per pixel, from 0.01 to"),
        ("ingest file --mpp -1", "error: --mpp -1: must be µm per pixel, from 0.01 to 100"),
        ("tiles . --classes a --mpp 1 --region-mpp 0", "error: --region-mpp 0: must be µm per"),
        ("cluster --region-mpp nan", "error: --region-mpp nan: must be µm per pixel"),
        ("ingest file --cohort=../x", "error: --cohort: may have letters, digits"),
        ("features out --cohort=../x", "error: --cohort: may have letters, digits"),
        ("labels ../x", "error: slide: may have letters, digits"),
        ("train --regions ../x", "error: --regions: may have letters, digits"),
        ("synthesize --model a/b/c", "error: --model: may have letters, digits"),
        ("export ../x out", "error: dataset: may have letters, digits"),
        ("embed --encoder random --steps 3", "--steps 3: only the encoder 'embedded' is trained"),
        ("rm model a", "there is no kind 'model' to remove: did you mean models?"),
        ("rm models/", "name one of the models: 'htd list models' shows them"),
        ("ingest file --region-size 8192", "--region-size"),
        ("ingest file --classes ,", "--classes ',' names no class"),
        ("ingest file --classes Tumor,tumor", "--classes Tumor,tumor: class names must differ"),
        (
            "ingest file --classes tumor --rename _0=tumour",
            "--rename _0=tumour: there is no class 'tumour'; the classes are 'background', 'tumor'",
        ),
        ("ingest file --rename _0=tumor", "no class 'tumor'; give --classes"),
        ("ingest file --classes tumor --rename a\\d", "--rename 'a\\d' must be <name>=<class>"),
        ("tiles . --classes , --mpp 1", "--classes ',' names no class"),
        ("embed --cohort a/b", "--cohort: may have letters, digits, '.', '_' and '-'"),
        ("synthesize --model m --dataset a,b", "--dataset: may have letters"),
        ("synthesize --model -m", "--model: may have letters"),
        ("synthesize --model m --guidance-map 99", "--guidance-map: must be less than or equal"),
        ("evaluate --report /", "--report: may have letters"),
        ("train --regions r --seed -1", "--seed"),
        ("phantom out --seed -1", "--seed"),
        ("train --regions r --recipe deep.yaml", "deep.yaml is nested too deeply"),
        ("train --regions r --recipe .", ". is a folder or a device"),
        ("pipeline .", ". is a folder or a device"),
        ("embed --set x=[1", "--set x=[1 is not valid YAML"),
        ("evaluate --set segmenter_batch=1", "--set segmenter_batch=1: must be greater than"),
        ("synthesize --model m --export yolo", "--export yolo: formats are folder, coco, geojson"),
        ("embed --cohort none", "not hold: run 'htd ingest --cohort none' first"),
        ("export none out", "'datasets/none/dataset.json': run 'htd synthesize --dataset none'"),
        ("cluster --cohort none", "holds no cohort 'none': run htd ingest first"),
        ("jobs list --store file", "file is a file: give a directory or s3://"),
        ("jobs list --store file/store", "file is a file: give a directory or s3://"),
        ("jobs list --store s3:/bucket", "'s3:/bucket' is not a store: give a directory or s3://"),
        ("ingest file --store file", "file is a file: give a directory or s3://"),
        ("embed --broker notaurl", "the broker's address is not valid: Redis URL must specify"),
        ("embed --broker redis://h:1/db", "is not valid: the database '/db' is not a number"),
    ],
)
def test_wrong_input_names_the_option(
    line: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert htd(monkeypatch, *line.split()) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert message in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    "words",
    [
        ("ingest", "file", "--classes", "a\x1b[31m,A\x1b[31m"),
        ("ingest", "file", "--classes", "a", "--rename", "\x1b[31m=\x1b[31m"),
        ("ingest", "\x1b[31m"),
        ("synthesize", "--model", "m", "--export", "\x1b[31m"),
        ("synthesize", "--model", "m", "--proportion", "\x1b[31m=1", "--proportion", "\x1b[31m=1"),
        ("embed", "--set", "\x1b[31m=1"),
        ("labels", "a", "out.\x1b[31m", "--format", "\x1b[31m"),
    ],
)
def test_a_terminal_obeys_nothing_that_a_message_repeats(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert htd(monkeypatch, *words) == 2
    shown = capsys.readouterr().err
    assert "\\x1b[31m" in shown
    assert "\x1b" not in shown


def test_names_of_files_are_printed_harmlessly(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "folder").mkdir()
    (here / "folder/a\x1b[31m.png").write_bytes(b"")
    assert htd(monkeypatch, "ingest", "folder") == 2
    shown = capsys.readouterr().err
    assert "a\\x1b[31m.png" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("option", [("--rename", "a=none"), ("--rename", "x" * 50_000)])
def test_messages_have_a_bound(
    option: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = ",".join(f"c{n}" for n in range(255))
    assert htd(monkeypatch, "ingest", "file", "--classes", classes, *option) == 2
    assert htd(monkeypatch, "ingest", "file", "--classes", f"{classes},C1") == 2
    shown = capsys.readouterr().err
    assert "and 236 more" in shown or "x…'" in shown
    assert max(map(len, shown.splitlines())) < 1000


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a", None, "b"), "a -> b: No space left"),
        (OSError(errno.EROFS, "Read-only file system", "st/a"), "st/a: Read-only file system; cho"),
        (FileExistsError(errno.EEXIST, "File exists", "out"), "out: File exists; a file is in the"),
        (OSError("Unable to open file [/x]"), "Unable to open file [/x]"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "Connection refused"),
        (MemoryError(), "the memory is full"),
        (MaxRetryError(None, "/b", Exception("refused")), "a server does not answer"),  # type: ignore[arg-type]
    ],
)
def test_errors_of_the_system_are_one_line(
    error: Exception,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails() -> list[object]:
        raise error

    monkeypatch.setattr(doctor, "examine", fails)
    assert htd(monkeypatch, "doctor") == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> list[object]:
        raise KeyError("bug")

    monkeypatch.setattr(doctor, "examine", fails)
    with pytest.raises(KeyError, match="bug"):
        htd(monkeypatch, "doctor")


def test_a_fault_of_several_options_blames_none_of_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("train", "--regions", "none", "--model", "m", "--warm-start", "colon")
    views, batch = "recipe.denoiser.views=1", "recipe.denoiser.batch_size=2"
    assert htd(monkeypatch, *words, "--set", views) == 2
    assert f"error: --set {views}: recipe.denoiser: views must be" in capsys.readouterr().err
    assert htd(monkeypatch, *words, "--set", views, "--set", batch) == 2
    assert "error: recipe.denoiser: views must be" in capsys.readouterr().err


def test_a_wrong_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HTD_THREADS", "none")
    settings.cache_clear()
    assert htd(monkeypatch, "jobs", "list") == 2
    assert "error: HTD_THREADS: must be a valid integer" in capsys.readouterr().err


def test_an_s3_server_that_is_down_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HTD_S3_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HTD_S3_ACCESS_KEY", "key")
    monkeypatch.setenv("HTD_S3_SECRET_KEY", "secret")
    settings.cache_clear()
    monkeypatch.setattr("urllib3.util.retry.Retry.get_backoff_time", lambda self: 0)
    assert htd(monkeypatch, "jobs", "list", "--store", "s3://bucket") == 1
    shown = " ".join(capsys.readouterr().err.split())
    assert shown.startswith("error: no S3 server answers at http://127.0.0.1:9: start it")
    assert htd(monkeypatch, "jobs", "list", "--store", "s3://b") == 2
    assert "invalid bucket name" in capsys.readouterr().err


def test_clusters_take_the_scale_of_their_cohort(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = DirectoryStore(here / "store")
    record = CohortRecord(
        cohort="toy", classes=None, splits={"a": "train"}, sha256={},
        patches=PatchGrid(size=48, stride=24, mpp=0.7),
    )  # fmt: skip
    store.put_json(cohort_key("toy"), record)
    htd(monkeypatch, "cluster", "--cohort", "toy")
    assert "regions of 96 px at 0.7 µm/px, as in cohort 'toy'" in capsys.readouterr().err
    rule = RegionRule(size=64, mpp=0.7)
    store.put_json(cohort_key("toy"), record.model_copy(update={"regions": rule}))
    htd(monkeypatch, "cluster", "--cohort", "toy", "--region-mpp", "2")
    assert "regions of 64 px at 2 µm/px" in capsys.readouterr().err


def test_classes_without_a_region_are_said_before_a_training(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = DirectoryStore(here / "store")
    record = make_region_set(store)
    more = Classes.of("stroma", "tumor", "necrosis")
    store.put_json("regions/toy/set.json", record.model_copy(update={"classes": more}))
    for part in record.slides:  # as ingest writes it: a share of each class
        key = f"regions/toy/{part.slide}.parquet"
        store.put(key, with_another_class(store.get(key)))
    assert htd(monkeypatch, "train", "--regions", "toy", "--recipe", "tiny") == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "note: region set 'toy' has no region with necrosis in train: the model" in shown


def test_a_slide_that_is_none_is_wrong_input(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "notes.tif").write_text("no slide")
    assert htd(monkeypatch, "ingest", "notes.tif") == 2
    shown = capsys.readouterr().err
    assert "notes.tif: cannot be opened: it is neither a slide nor an image" in shown
    assert not (here / "store/sources").exists()


def test_equal_refusals_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    tell(["a note"], [Refusal(f"tile{n}.png", "--patient 'x' tells no patient") for n in range(24)])
    assert capsys.readouterr().err.splitlines() == [
        "note: a note",
        "left out: 24 files (tile0.png, tile1.png, tile2.png and 21 more): "
        "--patient 'x' tells no patient",
    ]


def with_another_class(table: bytes) -> bytes:
    """Return a table of regions with a class more, which no region has."""
    rows = pq.read_table(io.BytesIO(table)).to_pylist()
    return region_table([row | {"fractions": [*row["fractions"], 0.0]} for row in rows])
