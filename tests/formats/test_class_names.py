"""Which names of annotations count, and which of those to be renamed are there."""

from __future__ import annotations

from pathlib import Path

from shapely.geometry import box

from services.ingest.annotations.class_names import classify
from services.ingest.annotations.outlines import Annotation, Outline
from shared.contracts.base import Classes


def test_a_name_with_a_star_is_no_class_unless_it_is_given() -> None:
    classes = Classes.of("tumor", "stroma")
    parts = [("tumor: Ignore*", "tumor", "Ignore*"), ("stroma",), ("_0",)]
    annotation = Annotation([Outline(box(0, 0, 9, 9), names) for names in parts])
    names = {"_0": "tumor", "_1": "stroma"}
    made = classify(annotation, classes, names, Path("a.geojson"))
    assert [item.label for item in made] == [2, 1]
    assert annotation.skipped == {"of a class that ends in *": 1}
    assert annotation.renamed == {"_0"}
    made = classify(annotation, classes, names | {"Ignore*": "stroma"}, Path("a.geojson"))
    assert [item.label for item in made] == [2, 2, 1]
