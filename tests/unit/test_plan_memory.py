"""The memory of TensorRT plans: what it is estimated from, and that it is bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.contracts.recipe import Recipe
from shared.serving.plan_memory import BUDGET, plan_rows, row_bytes
from shared.serving.protocol import Tensor
from shared.yaml_files import read_mapping

RECIPES = Path(__file__).parents[2] / "services" / "train" / "recipes"


def row(name: str, tokens: int, inputs: tuple[Tensor, ...] = ()) -> int:
    recipe = Recipe.model_validate(read_mapping(RECIPES / f"{name}.yaml"))
    denoiser = recipe.denoiser.model_copy(
        update={"head_width": 32}
    )  # as in the plan that was built
    return row_bytes(denoiser, inputs, recipe.size // 8, tokens)


def test_the_estimate_is_that_of_the_plan_that_was_built() -> None:
    assert 64 * row("base", 364) == pytest.approx(0.96e9, rel=0.02)
    assert plan_rows(row("base", 848)) == 64


def test_a_plan_of_paper_gets_fewer_rows() -> None:
    inputs = (
        Tensor("bias_1024", "FP32", (1, 1024, -1)), Tensor("features", "FP32", (512, 64, 64)),
        Tensor("tokens", "FP32", (-1, 256)),
    )  # fmt: skip
    paper = row("paper", 4376, inputs)
    assert paper - row("paper", 4376) == 4 * (1024 * 4376 + 512 * 64 * 64 + 4376 * 256)
    assert plan_rows(paper) == 16
    assert 16 * paper < BUDGET < 32 * paper


@pytest.mark.parametrize(("row", "rows"), [(1, 64), (BUDGET // 64, 64), (BUDGET // 63, 32),
                                           (BUDGET, 1), (2 * BUDGET, 1)])  # fmt: skip
def test_rows_are_a_power_of_two_that_fits(row: int, rows: int) -> None:
    assert plan_rows(row) == rows
