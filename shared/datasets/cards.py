"""The beginning of a dataset's card (README.md), for people and the Hugging Face hub."""

from __future__ import annotations

from typing import Any

import yaml

from shared.contracts.synthesize import DatasetRecord


def card_head(record: DatasetRecord, **front: Any) -> list[str]:
    """Return the first lines of a card: YAML front matter, title, description.

    Args:
        record: the dataset.
        front: further fields of the front matter.
    """
    fields: dict[str, Any] = {
        "pretty_name": record.dataset,
        "license": record.origin.license.lower() if record.origin else "unknown",
        "task_categories": ["image-segmentation"],
        "tags": ["histopathology", "synthetic"],
    }
    return [
        "---",
        yaml.safe_dump(fields | front, sort_keys=False).strip(),
        "---",
        f"# {record.dataset}",
        "",
        record.description,
        "Research use; not for diagnosis.",
        "",
    ]
