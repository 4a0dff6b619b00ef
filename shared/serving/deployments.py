"""The records of a model's deployments on Triton."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from shared.contracts.deploy import Deployment, DeployRequest, deployments_prefix
from shared.contracts.models import ModelRecord
from shared.errors import InputError
from shared.jobs import Ledger
from shared.storage import ObjectNotFoundError, Store


def deployments(store: Store, model: str) -> list[Deployment]:
    """Return a model's deployments, sorted by number; the last one is in use."""
    records = []
    for key in store.list(deployments_prefix(model)):
        with suppress(ObjectNotFoundError):  # deleted since the listing
            records.append(store.get_model(key, Deployment))
    return sorted(records, key=lambda each: each.number)


def next_number(ledger: Ledger, model: str) -> int:
    """Return a number above those of all deployments of a model: done, waiting and failed."""
    known = [each.number for each in deployments(ledger.store, model)]
    for job in ledger.jobs(DeployRequest.stage):
        request = ledger.request(job)
        known += [int(request["number"])] if request["model"] == model else []
    return max(known, default=0) + 1


def check_crops(crops: int, side: int, factor: int, max_tokens: int) -> None:
    """Check that a TensorRT plan takes an image's crops.

    Args:
        crops: number of crops.
        side: side of the largest one, pixels; at least the denoiser's `crop_side`, to which smaller
            crops are enlarged.
        factor: pixels per token along each side of a crop.
        max_tokens: largest number of tokens of the plan; one of them stands for "no crop".

    Raises:
        InputError: they have more tokens.
    """
    tokens = 1 + crops * max(1, side // factor) ** 2
    if tokens > max_tokens:
        raise InputError(
            f"{crops} crops of up to {side} px are {tokens} tokens, and the model's TensorRT plan "
            f"takes {max_tokens}: give fewer or smaller crops, or deploy it with --engine pytorch"
        )


def check_plan(store: Store, model: ModelRecord, sides: Sequence[int]) -> None:
    """Check the crops of an image against the TensorRT plan of a model, if it has one.

    Args:
        store: holds the deployments.
        model: the model version.
        sides: side of each crop, pixels.

    Raises:
        InputError: see `check_crops`.
    """
    in_use = [each for each in deployments(store, model.model) if each.version == model.version]
    if in_use and sides and (limit := in_use[-1].max_tokens) is not None:
        enlarged = int(model.size * model.recipe.denoiser.crop_max)
        check_crops(len(sides), max(*sides, enlarged), in_use[-1].factor, limit)
