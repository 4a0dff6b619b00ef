"""`htd list` and `htd rm`, and the versions that a training gets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from heterotissue import cli
from heterotissue.names import KINDS, entries, remove, with_free_version
from shared.contracts.ingest import CohortRecord, PatchGrid, SlideRecord, cohort_key, slide_key
from shared.contracts.jobs import Claim, JobRecord, JobResult
from shared.contracts.models import ModelRef
from shared.contracts.recipe import Recipe
from shared.contracts.regions import RegionSet
from shared.contracts.synthesize import DatasetRequest
from shared.contracts.train import TrainRequest
from shared.errors import InputError
from shared.jobs import Ledger, NameTakenError, names
from shared.models import find_version, versions
from shared.storage import DirectoryStore
from tests.models import publish_toy_model
from tests.region_sets import make_region_set


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    store = DirectoryStore(tmp_path)
    publish_toy_model(store, make_region_set(store))
    return store


def training(**fields: object) -> TrainRequest:
    recipe = Recipe.model_validate({"name": "r", "vae": {"steps": 1}, "denoiser": {"steps": 1}})
    plain = {"run": "new-1", "regions": "toy", "recipe": recipe, "model": "new"}
    return TrainRequest.model_validate(plain | fields)


def slide_record(name: str) -> SlideRecord:
    return SlideRecord.model_validate(
        {"slide": name, "source": "a.svs", "sha256": "", "width": 1, "height": 1, "mpp": 1,
         "mpp_y": 1, "vendor": "", "levels": 1, "tissue_fraction": 1, "objective": None,
         "stain": "h&e"}
    )  # fmt: skip


def test_another_training_gets_the_next_version(store: DirectoryStore) -> None:
    ledger = Ledger(store)
    first = with_free_version(store, training())
    job = ledger.submit(first)
    assert with_free_version(store, training()) == first, "an interrupted training goes on"
    other = with_free_version(store, training(seed=1))
    assert (other.version, other.run) == ("2", "new-2")
    with pytest.raises(NameTakenError, match="models/new/1 is being made"):
        ledger.submit(training(seed=1))
    ledger.cancel(job)
    assert with_free_version(store, training(seed=1)).version == "1"


def test_a_published_model_without_a_job_keeps_its_version(store: DirectoryStore) -> None:
    assert with_free_version(store, training(model="toy")).version == "2"


def test_a_name_alone_means_the_newest_version(store: DirectoryStore) -> None:
    record = store.get(ModelRef("toy", "1").key)
    for version in ("2", "10"):
        store.put(ModelRef("toy", version).key, record)
    assert versions(store, "toy") == ["1", "2", "10"]
    assert find_version(store, "toy") == ModelRef("toy", "10")
    assert find_version(store, "models/toy/2") == ModelRef("toy", "2")
    for name in ("none", "none/1", "toy/3"):
        with pytest.raises(InputError, match=f"holds no model '{name}': it holds .*toy/2, toy/10"):
            find_version(store, name)
    ledger = Ledger(store)
    job = ledger.submit(DatasetRequest(dataset="d", model="toy"))
    assert ledger.request(job)["version"] == "10"
    assert job == ledger.identify(DatasetRequest(dataset="d", model="toy", version="10"))
    with pytest.raises(ValidationError, match="'newest' stands for the newest version"):
        training(version="newest")


def test_a_list_says_that_nobody_works_on_a_thing(store: DirectoryStore) -> None:
    job = Ledger(store).submit(training())
    assert {entry.name: entry.state for entry in entries(store, "models")}["new/1"] == "planning"
    store.delete(f"open-jobs/{job}")
    found = {entry.name: entry.state for entry in entries(store, "models")}
    assert (found["new/1"], found["toy/1"]) == ("interrupted", "made")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_listed(store: DirectoryStore, kind: str) -> None:
    found = {entry.name: entry for entry in entries(store, kind)}
    if kind == "models":
        assert found["toy/1"].about == "32 px at 0.5 µm/px, trained on toy"
        assert found["toy/1"].made is not None
    if kind == "regions":
        assert found["toy"].about.startswith("18 regions of 64 px")


def test_a_damaged_record_does_not_hide_the_others(store: DirectoryStore) -> None:
    store.put(ModelRef("toy", "2").key, store.get(ModelRef("toy", "1").key))
    store.put(ModelRef("toy", "1").key, b"")
    first, second = entries(store, "models")
    assert "models/toy/1/model.json' of" in first.about
    assert "is damaged" in first.about
    assert second.about.startswith("32 px")


def test_what_is_being_made_is_listed_and_not_removed(store: DirectoryStore) -> None:
    job = Ledger(store).submit(training())
    found = {entry.name: entry for entry in entries(store, "models")}
    assert (found["new/1"].state, found["new/1"].job, found["new/1"].made) == (
        "planning",
        job,
        None,
    )
    with pytest.raises(InputError, match=f"htd jobs cancel {job}"):
        remove(store, "models", "new/1")
    Ledger(store).cancel(job)
    remove(store, "models", "new/1")
    assert names.owner(store, "models/new/1") is None
    assert names.owner(store, "training/new-1") is None
    assert Ledger(store).find(job) is None


def test_removing_one_of_two_products_leaves_the_other_with_its_job(store: DirectoryStore) -> None:
    job = "ingest-1"
    store.put_json(f"jobs/{job}/request.json", JobRecord(stage="ingest", request={}))
    store.put_json(f"jobs/{job}/result.json", JobResult(state="done", result={}, failed={}))
    for name in ("cohorts/toy", "regions/toy"):
        store.put_json(f"names/{name}.json", Claim(job=job))
    record = CohortRecord(cohort="toy", classes=None, patches=PatchGrid(), splits={}, sha256={})
    store.put_json(cohort_key("toy"), record)
    remove(store, "regions", "toy")
    assert not list(store.list("regions/toy/"))
    assert names.owner(store, "regions/toy") is None
    (cohort,) = entries(store, "cohorts")
    assert (cohort.job, cohort.state) == (job, "done")
    remove(store, "cohorts", "toy")
    assert names.owner(store, "cohorts/toy") is None
    assert Ledger(store).find(job) is None


def test_a_cohort_leaves_the_regions_of_a_clustering_of_its_name(store: DirectoryStore) -> None:
    record = CohortRecord(cohort="toy", classes=None, patches=PatchGrid(), splits={}, sha256={})
    store.put_json(cohort_key("toy"), record)
    regions = store.get_model("regions/toy/set.json", RegionSet)
    store.put_json("regions/toy/set.json", regions.model_copy(update={"labels": "clusters/toy"}))
    remove(store, "cohorts", "toy")
    assert not store.exists(cohort_key("toy"))
    assert store.exists("regions/toy/set.json")


def test_a_cohort_of_tiles_is_listed_as_one(store: DirectoryStore) -> None:
    store.put_json("names/cohorts/toy.json", Claim(job="ingest-1"))
    (cohort,) = entries(store, "cohorts")  # the regions are not those of tiles
    assert (cohort.about, cohort.made) == ("", None)
    regions = store.get_model("regions/toy/set.json", RegionSet)
    store.put_json("regions/toy/set.json", regions.model_copy(update={"tiles": "tiles/toy/1"}))
    (cohort,) = entries(store, "cohorts")
    assert cohort.about == "tiles of 3 slides (2 train, 0 val, 1 test); stroma, tumor"
    assert cohort.made is not None
    with pytest.raises(InputError, match=r"no 'scan' among the slides of .*, which has none"):
        remove(store, "slides", "scan")
    store.put_json(slide_key("scan"), slide_record("scan"))
    assert remove(store, "slides", "scan") == 1


def test_rm_removes_one_thing_and_names_what_there_is(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def htd(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["htd", *words, "--store", store.url])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0)

    for name in ("tou/1", "TOY/1"):
        assert htd("rm", "models", name, "--yes") == 2
        assert f"no '{name}' among the models" in (said := capsys.readouterr().err)
        assert "did you mean toy/1?" in said
    assert htd("rm", "regions", "brain", "--yes") == 2
    assert ": there are toy" in capsys.readouterr().err
    assert htd("rm", "models", "toy") == 2
    assert "no terminal to ask at: --yes removes toy/1" in capsys.readouterr().err
    store.put(ModelRef("toy", "2").key, store.get(ModelRef("toy", "1").key))
    assert htd("rm", "models/toy", "--yes") == 2
    assert "model 'toy' has the versions toy/1, toy/2: name one" in capsys.readouterr().err
    assert htd("rm", "models/toy/2", "--yes") == 0
    assert htd("rm", "models/toy", "--yes") == 0
    assert not list(store.list("models/"))
    assert list(store.list("regions/toy/"))
    assert htd("list", "models") == 0


def test_a_slide_goes_by_its_own_name_where_it_has_one_content(store: DirectoryStore) -> None:
    for digits in ("a7b8fd9c04cc", "0123456789ab"):
        store.put_json(slide_key(f"s0-{digits}"), slide_record("s0"))
    with pytest.raises(InputError, match="slide 's0' has the contents s0-0123456789ab, s0-a7b8fd"):
        remove(store, "slides", "s0")
    remove(store, "slides", "s0-0123456789ab")
    remove(store, "slides", "s0")
    assert not list(store.list("slides/"))
    with pytest.raises(InputError, match="there is no 's0' among the slides"):
        remove(store, "slides", "s0")
