"""Deploy: a model version → a deployment on Triton.

triton/<tenant>.<model>-<number>-<part>/…  Triton's model repository at the root of the store, see
                                            shared.serving.repository
triton/deployments/<model>/<number>.json    Deployment, in the tenant's part of the store
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from shared.contracts.base import Contract, Name, Request
from shared.contracts.models import ModelChoice

Engine = Literal["pytorch", "tensorrt"]


class DeployBody(Contract):
    """How Triton runs a model version."""

    engine: Engine = "pytorch"
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="device on which Triton runs the networks; auto: a GPU if the server has one",
    )

    @model_validator(mode="after")
    def _plans_need_a_gpu(self) -> DeployBody:
        if self.engine == "tensorrt" and self.device == "cpu":
            raise ValueError("TensorRT needs a GPU: leave device out, or take the engine pytorch")
        return self


class DeployRequest(ModelChoice, DeployBody, Request):
    """Serve a model version on Triton; running requests finish on the previous deployment."""

    stage: ClassVar[str] = "deploy"

    number: int = Field(ge=1, description="number of the deployment: one more than the last")

    def inputs(self) -> list[str]:
        return [self.model_ref.key]


class Deployment(Contract):
    """The record of a deployment; a model's deployment with the highest number is in use."""

    number: int = Field(ge=1, description="grows with every deployment of the model")
    version: Name = Field(description="the model's version")
    engine: Engine
    sha256: dict[str, str] = Field(description="file → SHA-256 of the weights")
    max_tokens: int | None = Field(
        None, description="largest number of tokens of an image's crops that its plan takes"
    )
    factor: int = Field(8, ge=1, description="pixels per token along each side of a crop")


def deployments_prefix(model: str) -> str:
    """Return the prefix of the records of a model's deployments, with its trailing slash."""
    return f"triton/deployments/{model}/"


def deployment_key(model: str, number: int) -> str:
    """Return the key of the record of a deployment."""
    return f"{deployments_prefix(model)}{number}.json"


def served_model(tenant: str, model: str) -> str:
    """Return the name that a tenant's model has on Triton, which all tenants share.

    A tenant's name has no dot, so that no two tenants' models have the same name.
    """
    return f"{tenant}.{model}"


def served_prefix(name: str) -> str:
    """Return the prefix, in the root of the store, of a part of a deployment by its name there."""
    return f"triton/{name}/"
