"""Published folders: the names in them, the sampling saved with them, and the card's example."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import heterotissue.models
from services.train.stage import TrainStage
from shared.contracts.models import ModelRecord, ModelRef
from shared.contracts.recipe import StudentRecipe
from shared.contracts.sampling import Sampling
from shared.contracts.synthesize import Provenance
from shared.contracts.train import TrainRequest
from shared.diffusion import conditionings
from shared.diffusion.crops import Crop
from shared.diffusion.model_store import load_model
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.jobs import Ledger, run_job
from shared.models import read_model
from shared.serving.generator import open_generator
from shared.settings import Settings
from shared.storage import DirectoryStore
from tests.models import publish_toy_model
from tests.region_sets import make_region_set
from tests.toy_training import RECIPE

TEACHER, STUDENT, TOY = ModelRef("teacher", "1"), ModelRef("student", "1"), ModelRef("toy", "1")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> DirectoryStore:
    """A teacher and its student, published by the train stage; and a toy with another VAE."""
    store = DirectoryStore(tmp_path_factory.mktemp("store"))
    publish_toy_model(store, make_region_set(store))
    ledger = Ledger(store)
    student = RECIPE.denoiser.model_copy(
        update={"steps": 1, "student": StudentRecipe(sampling_steps=4, teacher_steps=1)}
    )
    vae = RECIPE.vae.model_copy(update={"steps": 0, "decoder_steps": 0})
    for request in (
        TrainRequest(run="t", regions="toy", recipe=RECIPE, model=TEACHER.name),
        TrainRequest(
            run="s", regions="toy", model=STUDENT.name, warm_start=f"models/{TEACHER}",
            recipe=RECIPE.model_copy(
                update={"denoiser": student, "vae": vae, "precision": "bf16"}
            ),
        ),
    ):  # fmt: skip
        job = ledger.submit(request)
        assert run_job(ledger, TrainStage(), job, config=Settings(threads=1)).state == "done"
    return store


def folder_of(store: DirectoryStore, ref: ModelRef) -> Path:
    return store.root / ref.prefix


def example(record: ModelRecord) -> tuple[np.ndarray, list[list[Crop]], list[int]]:  # type: ignore[type-arg]
    rng = np.random.default_rng(0)
    labels = np.ones((2, record.size, record.size), np.uint8)
    labels[:, :, record.size // 2 :] = 2
    pixels = rng.integers(256, size=(8, 8, 3), dtype=np.uint8)
    return labels, [[Crop(1, 2, 2, pixels)], []], [3, 4]


def test_a_published_folder_names_public_modules(store: DirectoryStore) -> None:
    folder = folder_of(store, TEACHER)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "HeteroTissuePipeline"
    assert index["denoiser"] == ["heterotissue.models", "RegionalDenoiser"]
    assert index["vae"] == ["diffusers", "AutoencoderDC"]
    texts = [path.read_text() for path in folder.rglob("*") if path.suffix in {".json", ".md"}]
    assert not any("shared." in text for text in texts)


def test_every_conditioning_has_a_public_name() -> None:
    for kind in conditionings.CONDITIONINGS.values():
        assert getattr(heterotissue.models, kind.__name__) is kind
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        heterotissue.models.Nothing  # noqa: B018


def test_the_public_module_is_cheap_to_import() -> None:
    code = "import sys, heterotissue.models; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("ref", "steps", "first_order", "guidance"),
    [(TEACHER, 10, False, 1.75), (STUDENT, 4, True, 1), (TOY, 10, False, 1.75)],
)
def test_a_plain_call_gives_the_image_of_the_service(
    store: DirectoryStore, ref: ModelRef, steps: int, first_order: bool, guidance: float
) -> None:
    record = read_model(store, ref)
    pipeline = HeteroTissuePipeline.from_pretrained(folder_of(store, ref))
    own = pipeline.sampling
    assert (own.steps, own.first_order, own.guidance_map) == (steps, first_order, guidance)
    assert own.guidance_crops == guidance
    done: list[int] = []
    labels, crops, seeds = example(record)
    images = pipeline(labels, crops, seeds, callback=done.append)
    assert done == list(range(1, steps + 1))
    generator, _ = open_generator(store, record, "cpu")
    assert np.array_equal(images, generator.generate(labels, crops, seeds, record.recipe.sampling))


def test_folders_published_before_still_open(store: DirectoryStore, tmp_path: Path) -> None:
    """Such folders name modules of `shared`, and hold neither sampling nor precision."""
    folder = tmp_path / "old"
    shutil.copytree(folder_of(store, STUDENT), folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["denoiser"] = ["shared.diffusion.regional", "RegionalDenoiser"]
    del index["sampling"], index["precision"]
    (folder / "model_index.json").write_text(json.dumps(index))
    record = read_model(store, STUDENT)
    old = HeteroTissuePipeline.from_pretrained(folder)
    assert old.sampling == Sampling()
    expected = load_model(store, STUDENT, "cpu").generate(*example(record), record.recipe.sampling)
    images = old(*example(record), record.recipe.sampling, precision=record.recipe.precision)
    assert np.array_equal(images, expected)
    old.save_pretrained(tmp_path / "again")  # saved again, it has public names
    again = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert again["denoiser"] == ["heterotissue.models", "RegionalDenoiser"]


def test_an_old_version_in_the_store_is_served(store: DirectoryStore, tmp_path: Path) -> None:
    other = DirectoryStore(tmp_path)
    shutil.copytree(folder_of(store, STUDENT), folder_of(other, STUDENT))
    path = folder_of(other, STUDENT) / "model_index.json"
    index = json.loads(path.read_text())
    index["denoiser"][0] = "shared.diffusion.regional"
    path.write_text(json.dumps({k: v for k, v in index.items() if k != "sampling"}))
    record = read_model(other, STUDENT).model_copy(update={"configurations": {}})
    other.put_json(STUDENT.key, record)  # as it was published then
    images = [
        load_model(each, STUDENT, "cpu").generate(*example(record), record.recipe.sampling)
        for each in (store, other)
    ]
    assert np.array_equal(*images)


def test_the_service_loads_a_folder_without_the_users_side(store: DirectoryStore) -> None:
    code = (
        "import sys; from pathlib import Path; from shared.contracts.models import ModelRef\n"
        "from shared.diffusion.model_store import load_model\n"
        "from shared.storage import DirectoryStore\n"
        f"load_model(DirectoryStore(Path({str(store.root)!r})), ModelRef('student', '1'), 'cpu')\n"
        "print([name for name in sys.modules if name.startswith('heterotissue')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("ref", [TEACHER, STUDENT])
def test_the_example_of_the_card_runs(store: DirectoryStore, ref: ModelRef, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folder_of(store, ref), folder)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert "from heterotissue" in code
    root = Path(heterotissue.models.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True)
    size = read_model(store, ref).size
    with Image.open(folder / "sample.png") as image:
        assert image.size == (size, size)


def test_provenance_of_earlier_datasets_is_read() -> None:
    common = {
        "key": "00000000", "index": 0, "model": "m/1", "weights": {}, "map_regions": "r",
        "map_region": "r_0_0", "map_slide": "r", "map_x": 0, "map_y": 0, "symmetry": 0,
        "crop_regions": "r", "crops": [], "seed": 0, "condition": "both", "copied": None,
    }  # fmt: skip
    flat = {
        "steps": 4, "guidance_map": 1.0, "guidance_crops": 1.5, "guidance_low": 0.2,
        "guidance_high": 0.8, "staining": 0.25,
    }  # fmt: skip
    provenance = Provenance.model_validate_json(json.dumps(common | flat))
    assert provenance.sampling == Sampling.model_validate(flat)
    assert Provenance.model_validate_json(provenance.model_dump_json()) == provenance
