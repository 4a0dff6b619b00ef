"""Training recipes: those of the package, users' YAML files, and recipes of students."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from heterotissue.yaml_files import parse_mapping
from shared.contracts.models import ModelRecord
from shared.contracts.recipe import Recipe, StudentRecipe
from shared.contracts.sampling import GuidanceScale
from shared.errors import InputError

_FOLDER = files("services").joinpath("train", "recipes")


def recipe_names() -> list[str]:
    """List the recipes that come with the package."""
    names = [Path(item.name) for item in _FOLDER.iterdir()]
    return sorted(name.stem for name in names if name.suffix == ".yaml")


def load_recipe(name: str) -> Recipe:
    """Load a recipe by its name, or from a YAML file.

    Raises:
        InputError: there is no such recipe and no such file, or the file is not a recipe.
    """
    named, path = _FOLDER.joinpath(f"{name}.yaml"), Path(name)
    if named.is_file():
        text = named.read_text()
    elif path.is_file():
        text = path.read_text()
    else:
        raise InputError(f"no recipe {name!r}: give {', '.join(recipe_names())}, or a YAML file")
    return Recipe.model_validate(parse_mapping(text, name))


def student_recipe(
    teacher: ModelRecord,
    *,
    sampling_steps: int = 4,
    teacher_steps: int = 5,
    steps: int = 1000,
    learning_rate: float = 1e-4,
) -> Recipe:
    """Return the recipe of a few-step student of a model.

    The student has the teacher's architecture and autoencoder, and learns its guidance.

    Args:
        teacher: the model to learn from.
        sampling_steps: denoising steps of the student for an image.
        teacher_steps: denoising steps of the teacher for each step of the student.
        steps: training steps.
        learning_rate: learning rate of the training.
    """
    own = teacher.recipe.sampling.model_dump(include=set(GuidanceScale.model_fields))
    student = StudentRecipe(
        sampling_steps=sampling_steps,
        teacher_steps=teacher_steps,
        guidance=GuidanceScale.model_validate(own),
    )
    training = {"student": student, "steps": steps, "learning_rate": learning_rate}
    return teacher.recipe.model_copy(
        update={
            "vae": teacher.recipe.untrained().vae,
            "denoiser": teacher.recipe.denoiser.model_copy(update=training),
        }
    )
