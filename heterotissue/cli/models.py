"""Commands about models: train, distill, deploy."""

from __future__ import annotations

from typing import Annotated

import typer

from heterotissue.cli.options import (
    BrokerOption,
    DryRunOption,
    FreshOption,
    ModelOption,
    ReplaceOption,
    SeedOption,
    SetOption,
    StoreOption,
    changed,
    check_name,
    check_positive,
    example,
)
from heterotissue.cli.outcome import run_and_end
from heterotissue.names import with_free_version
from heterotissue.progress import say
from heterotissue.recipes import load_recipe, recipe_names, student_recipe
from heterotissue.running import Target
from shared.contracts.deploy import DeployRequest
from shared.contracts.models import ModelRecord, ModelRef
from shared.contracts.recipe import Recipe
from shared.contracts.train import PACKAGED, TrainRequest
from shared.errors import InputError, quoted
from shared.jobs import Ledger
from shared.models import find_version, read_model, versions
from shared.serving.deployments import next_number
from shared.storage import Store

app = typer.Typer()


@app.command(epilog=example("htd train --regions lung --recipe tiny --warm-start starter"))
def train(
    regions: Annotated[
        str,
        typer.Option(
            help="Region set: the name of a cohort or of a clustering.", callback=check_name
        ),
    ],
    name: Annotated[
        str, typer.Option("--model", help="Name of the model.", callback=check_name)
    ] = "model",
    version: Annotated[
        str | None,
        typer.Option(
            help="Version to publish; default: the next free number.", callback=check_name
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(recipe_names())}, or a YAML file; default: that of the warm start, "
            "or tiny."
        ),
    ] = None,
    warm_start: Annotated[
        str | None,
        typer.Option(
            help=f"Checkpoint to start from: {', '.join(PACKAGED)} (in the package), or "
            "models/<name>/<version>."
        ),
    ] = None,
    as_is: Annotated[
        bool, typer.Option("--as-is", help="Publish the warm start without training it.")
    ] = False,
    seed: SeedOption = 0,
    store: StoreOption = None,
    broker: BrokerOption = None,
    fresh: FreshOption = False,
    replace: ReplaceOption = False,
    dry_run: DryRunOption = False,
    change: SetOption = None,
) -> None:
    """Train a model on a region set's train split, and publish it.

    If the recipe has student_steps, a student of the model is trained after it, and is its next
    version.
    """
    if as_is and warm_start is None:
        raise InputError("--as-is publishes a warm start: name it by --warm-start")
    target = Target.of(store, broker, dry_run)
    if warm_start is not None:
        _check_checkpoint(target.store, warm_start)
    loaded = load_recipe(recipe) if recipe else _default_recipe(target.store, warm_start)
    request = TrainRequest(
        run=f"{name}-{version or 1}",
        regions=regions,
        recipe=loaded.untrained() if as_is else loaded,
        model=name,
        version=version or "1",
        warm_start=warm_start,
        seed=seed,
    )
    request = changed(request, change)
    if version is None and not replace:
        request = with_free_version(target.store, request)
    students = 0 if as_is else request.recipe.student_steps
    if students and dry_run:
        say(f"after this, a student of {request.model_ref} is trained, its next version")
    run_and_end(target, request, fresh=fresh, replace=replace)
    if students:
        teacher = read_model(target.store, request.model_ref)
        distilling = _distilling(teacher, name, student_recipe(teacher, steps=students))
        run_and_end(target, with_free_version(target.store, distilling))


def _distilling(teacher: ModelRecord, into: str, recipe: Recipe) -> TrainRequest:
    return TrainRequest(
        run=f"{into}-1",
        regions=teacher.regions,
        recipe=recipe,
        model=into,
        warm_start=f"models/{teacher.ref}",
    )


def _default_recipe(store: Store, warm_start: str | None) -> Recipe:
    """Return the recipe that a warm start was trained by, because only that fits its layers."""
    if warm_start is None:
        return load_recipe("tiny")
    if warm_start in PACKAGED:
        return load_recipe(PACKAGED[warm_start].recipe)
    return read_model(store, ModelRef.parse(warm_start)).recipe


def _check_checkpoint(store: Store, name: str) -> None:
    """Raise `InputError` unless `name` is a checkpoint of the package or a model of the store."""
    if name in PACKAGED or ("/" in name and store.exists(ModelRef.parse(name).key)):
        return
    models = [
        f"models/{model}/{v}" for model in store.folders("models/") for v in versions(store, model)
    ]
    raise InputError(
        f"no checkpoint {quoted(name)} to start from: give {', '.join(PACKAGED)}"
        + (f", or a model of this store: {', '.join(models)}" if models
           else " (this store has no models yet)")
    )  # fmt: skip


@app.command(epilog=example("htd distill --model lung/2 --into lung-fast"))
def distill(
    model: Annotated[
        str, typer.Option(help="The teacher: <name> or <name>/<version>.", callback=check_name)
    ],
    into: Annotated[str, typer.Option(help="Name of the student.", callback=check_name)],
    sampling_steps: Annotated[
        int, typer.Option(min=1, max=16, help="Denoising steps of the student for an image.")
    ] = 4,
    teacher_steps: Annotated[
        int,
        typer.Option(min=1, help="Denoising steps of the teacher for each step of the student."),
    ] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 1000,
    learning_rate: Annotated[
        float, typer.Option(help="Learning rate of the training.", callback=check_positive)
    ] = 1e-4,
    store: StoreOption = None,
    broker: BrokerOption = None,
    fresh: FreshOption = False,
    replace: ReplaceOption = False,
    dry_run: DryRunOption = False,
    change: SetOption = None,
) -> None:
    """Train a student model that makes a teacher's images in few steps, without guidance."""
    target = Target.of(store, broker, dry_run)
    teacher = read_model(target.store, find_version(target.store, model))
    recipe = student_recipe(
        teacher,
        sampling_steps=sampling_steps,
        teacher_steps=teacher_steps,
        steps=steps,
        learning_rate=learning_rate,
    )
    request = changed(_distilling(teacher, into, recipe), change)
    if not replace:
        request = with_free_version(target.store, request)
    run_and_end(target, request, fresh=fresh, replace=replace)


@app.command(epilog=example("htd deploy --model lung/2"))
def deploy(
    model: ModelOption,
    engine: Annotated[str | None, typer.Option(help="pytorch (default) or tensorrt.")] = None,
    device: Annotated[
        str | None, typer.Option(help="auto (default: a GPU if Triton has one), cpu or cuda.")
    ] = None,
    store: StoreOption = None,
    broker: BrokerOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Load a model version on Triton. To go back, deploy an older version again."""
    target = Target.of(store, broker, dry_run)
    ref = find_version(target.store, model)
    number = next_number(Ledger(target.store), ref.name)
    options = {"engine": engine, "device": device}
    request = DeployRequest.model_validate(
        {"model": ref.name, "version": ref.version, "number": number}
        | {name: value for name, value in options.items() if value is not None}
    )
    run_and_end(target, request)


app.command("publish", hidden=True, deprecated=True, epilog=example("htd deploy --model lung/2"))(
    deploy
)  # the command's name until version 0.1
