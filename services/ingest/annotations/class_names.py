"""The class of each outline, by its names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shapely.geometry.base import BaseGeometry

from services.ingest.annotations.outlines import Annotation, Outline
from shared.contracts.base import Classes, spelling
from shared.errors import InputError, all_quoted


@dataclass(frozen=True)
class Labelled:
    """An outline with its class index.

    Attributes:
        area: polygon or multipolygon, pixels.
        label: class index; 0 is background.
        cut: whether it is cut out of all others, whatever the order.
    """

    area: BaseGeometry
    label: int
    cut: bool = False


def classify(
    annotation: Annotation, classes: Classes, label_names: dict[str, str], path: Path
) -> list[Labelled]:
    """Find the class of each outline; those without a class are added to `annotation.skipped`.

    `label_names` (annotation name → class name) is applied first. All comparisons ignore case,
    and treat `_` and `-` as spaces. Outlines without a name, and those whose name ends in `*`
    (Ignore*, Region*, tumor: Ignore*), have no class, unless that very name is one's.

    Raises:
        InputError: names belong to no class.
    """
    known = {spelling(item.name): item.index for item in classes.items}
    renamed = {spelling(key): spelling(value) for key, value in label_names.items()}

    def index(outline: Outline) -> int | None:
        hints = (outline.hint,) if outline.hint else ()
        starred = tuple(name for name in outline.names if name.endswith("*"))
        for name in starred or (*outline.names, *hints):
            label = known.get(renamed.get(spelling(name), spelling(name)))
            if label is not None:
                return label
        return None

    names = {spelling(name) for outline in annotation.outlines for name in outline.names}
    names |= {spelling(outline.hint) for outline in annotation.outlines if outline.hint}
    annotation.renamed = {key for key in label_names if spelling(key) in names}
    labelled, unknown = [], set()
    for outline in annotation.outlines:
        label = index(outline)
        if label is not None:
            labelled.append(Labelled(outline.area, label))
        elif outline.cut:
            labelled.append(Labelled(outline.area, 0, cut=True))
        elif not outline.names:
            annotation.skipped["without a class"] += 1
        elif any(name.endswith("*") for name in outline.names):
            annotation.skipped["of a class that ends in *"] += 1
        else:
            unknown.add(outline.names[0])
    if unknown:
        raise InputError(
            f"{path.name} has labels that are not among the classes "
            f"{all_quoted(classes.names)}: {all_quoted(sorted(unknown))}. Add them to the "
            "classes, or map them with --rename (label_names)"
        )
    return labelled
