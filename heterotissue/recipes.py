"""Training recipes: those of the package, users' YAML files, and recipes of students."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from pydantic import ValidationError

from shared.contracts.explaining import explain
from shared.contracts.models import ModelRecord
from shared.contracts.recipe import Recipe, StudentRecipe
from shared.contracts.sampling import GuidanceScale
from shared.errors import InputError, quoted
from shared.yaml_files import parse_mapping, read_mapping

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
    if name in recipe_names():
        content = parse_mapping(_FOLDER.joinpath(f"{name}.yaml").read_bytes(), name)
    elif Path(name).exists():
        content = read_mapping(Path(name))
    else:
        raise InputError(
            f"no recipe {quoted(name)}: give {', '.join(recipe_names())}, or a YAML file"
        )
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise InputError(f"recipe {name}: {explain(error, Recipe)}") from error


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
            "student_steps": 0,
        }
    )
