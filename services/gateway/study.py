"""The paper's ablation: the same maps and seeds, with and without map and crops, and one report."""

from __future__ import annotations

from collections.abc import Iterator

from shared.contracts.base import Request, Split
from shared.contracts.evaluate import EvaluateRequest
from shared.contracts.synthesize import Condition, CropSource, DatasetRequest, MapSource

ROWS: tuple[Condition, ...] = ("none", "map", "crops", "both")


def study(
    name: str,
    model: str,
    version: str,
    *,
    regions: int,
    images: int,
    evaluate: EvaluateRequest,
    sampling: dict[str, float | None],
) -> Iterator[Request]:
    """Yield the requests of a study, in order.

    Args:
        name: of the study; its datasets are `<name>-…`, its report `<name>`.
        model, version: what is studied.
        regions: test regions; each gives its map to one image of every row.
        images: of the dataset, made of training slides, that segmenters are trained on.
        evaluate: report request; its datasets and rows are filled in.
        sampling: `steps`, `guidance_map`, `guidance_crops`, `seed` of all datasets.
    """

    def made(row: Condition, split: Split, count: int, dataset: str) -> DatasetRequest:
        own = split == "test"  # test maps as they are, so that each has its real counterpart
        return DatasetRequest.model_validate(
            {
                "dataset": dataset,
                "model": model,
                "version": version,
                "images": count,
                "condition": row,
                "maps": MapSource(splits=(split,), augment=not own),
                "crops": CropSource(splits=(split,), slide="same"),
                **sampling,
            }
        )

    rows = {row: f"{name}-{row}" for row in ROWS}
    seen = {row: f"{name}-seen-{row}" for row in ROWS}
    for row in ROWS:
        yield made(row, "test", regions, rows[row])
        yield made(row, "train", regions, seen[row])
    yield made("both", "train", images, name)
    update = {"report": name, "dataset": name, "ablation": rows, "seen": seen}
    yield evaluate.model_copy(update=update)
