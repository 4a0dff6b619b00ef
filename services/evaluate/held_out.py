"""Whether what is tested on was held out of all trainings, and of the dataset itself."""

from __future__ import annotations

from collections.abc import Iterable

from shared.contracts.evaluate import EvaluateRequest
from shared.contracts.models import ModelRef
from shared.contracts.regions import RegionSet, SourceSlide
from shared.contracts.synthesize import DatasetRecord
from shared.contracts.train import PACKAGED
from shared.datasets.pseudonyms import dataset_pseudonyms, is_as_made, source_slides
from shared.datasets.samples import load_dataset, read_manifest
from shared.datasets.slide_sources import among, slides_of, trained_slides
from shared.models import read_model
from shared.patients import folded
from shared.storage import ObjectNotFoundError, Store


def find_leaks(
    store: Store,
    request: EvaluateRequest,
    real: RegionSet,
    dataset: DatasetRecord,
) -> list[str]:
    """Return a caution for each way in which slides that are tested on were seen before.

    Slides are compared by their contents, as they were when a model was trained: names and splits
    of a cohort may change.

    Args:
        store: holds the records.
        request: names the splits.
        real: the region set.
        dataset: the dataset.
    """
    trained, cautions = _training_slides(store, _models(store, request))
    cautions += [text for text in real.cautions if text not in cautions]
    trained += slides_of(store, real, *request.real_train)
    tested = slides_of(store, real, *request.real_test)
    if overlap := among(tested, trained):
        cautions.append(
            f"Slides {', '.join(overlap)} are tested on, and were also trained on: "
            "the figures are better than they would be on new slides."
        )
    known, others = _patients(tested), _patients(trained)
    if not overlap and (divided := sorted(known[each] for each in known.keys() & others)):
        cautions.append(
            f"Slides of patients {', '.join(divided)} are tested on, and other slides of theirs "
            "were trained on: the figures are better than they would be on new patients."
        )
    sources, lost = _dataset_slides(store, dataset)
    if among(tested, sources):
        cautions.append(
            f"Maps or crops of the dataset were taken from the {' or '.join(request.real_test)}"
            " split: so it was partly made from the slides that it is tested on."
        )
    if lost:
        cautions.append(
            f"{lost} slides that maps or crops of the dataset were taken from are in its regions "
            "no longer: so it is not known whether they are tested on."
        )
    return cautions


def _dataset_slides(store: Store, dataset: DatasetRecord) -> tuple[list[SourceSlide], int]:
    """Return the slides of a dataset's maps and crops, and how many are not known any more."""
    rows = read_manifest(store, dataset, ["map_slide", "crop_slides"])
    used = set(rows["map_slide"].to_pylist()).union(*rows["crop_slides"].to_pylist())
    pseudonyms = dataset_pseudonyms(store, dataset.request)
    known = [(pseudonyms.of("slide", s.slide), s) for s in source_slides(store, dataset)]
    return [slide for name, slide in known if name in used], len(used - {name for name, _ in known})


def changed(store: Store, request: EvaluateRequest) -> list[str]:
    """Return a sentence for each dataset whose regions are not those that it was made from."""
    return [
        f"The regions that dataset {name!r} was made from were changed since: figures that compare "
        "its images with their crops may be of other tissue."
        for name in _datasets(request)
        if not is_as_made(store, load_dataset(store, name).request)
    ]


def _datasets(request: EvaluateRequest) -> list[str]:
    every = (request.dataset, *request.ablation.values(), *request.seen.values())
    return list(dict.fromkeys(every))


def _models(store: Store, request: EvaluateRequest) -> list[str]:
    """List the models, `<name>/<version>`, that made the datasets of a request."""
    return list(dict.fromkeys(load_dataset(store, name).model for name in _datasets(request)))


def unlearnt(store: Store, request: EvaluateRequest) -> list[str]:
    """Return a sentence for each model of the datasets that has never learnt some classes."""
    models = (read_model(store, ModelRef.parse(name)) for name in _models(store, request))
    return [
        f"Model {model.ref} has never learnt {', '.join(model.unlearnt)}: without crops they look "
        "alike in its images, so no figure says how well a trained model makes them."
        for model in models
        if model.unlearnt
    ]


def _patients(slides: Iterable[SourceSlide]) -> dict[str, str]:
    """Return the known patients: as identifiers are compared → as they are written."""
    return {folded(each.patient): each.patient for each in slides if each.patient}


def _training_slides(store: Store, models: list[str]) -> tuple[list[SourceSlide], list[str]]:
    """Collect the training slides of models, and of the models that these were started from.

    Args:
        store: holds the records of the models.
        models: `<name>/<version>` of each model.

    Returns:
        The slides, and a caution for every model that is no longer in the store.
    """
    slides: list[SourceSlide] = []
    cautions: list[str] = []
    queue = list(models)
    for reference in queue:  # the loop also visits the models that it appends
        try:
            model = read_model(store, ModelRef.parse(reference))
            slides += trained_slides(store, model)
        except ObjectNotFoundError:
            cautions.append(
                f"Model {reference}, which a generator was started from, or the list of its slides "
                "is no longer in the store: so it is not known whether it was trained on the test "
                "slides."
            )
            continue
        start = (model.warm_start or "").removeprefix("models/")
        if start not in ("", *PACKAGED, *queue):
            queue.append(start)
    return slides, cautions
