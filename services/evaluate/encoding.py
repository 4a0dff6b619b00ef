"""The shard of one encoder: encode all images, and compute the figures that need features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from services.evaluate.appearance import crop_retrieval
from services.evaluate.contact_sheet import COLUMNS
from services.evaluate.data import MAP_AND_CROPS, MAX_IMAGES, Material, Pairs, centre, spread
from services.evaluate.fidelity import FeatureSet, fidelity, nearest
from services.evaluate.frechet import Moments, load_statistics, save_statistics
from services.evaluate.leakage import authenticity
from services.evaluate.membership import by_neighbours, patients_of
from services.evaluate.per_patient import per_patient
from services.evaluate.reconstruction import Transform, autoencoder_of
from shared.arrays import Float32
from shared.contracts.evaluate import (
    EncoderFigures,
    EvaluateRequest,
    ReferenceDistance,
    ReportPart,
    report_key,
)
from shared.encoders import Encoder, load_encoder
from shared.errors import InputError
from shared.jobs import Context
from shared.storage import Store

ENCODE_BATCH = 64

TURNS = 4
"""Number of views of an image: all quarter turns, because tissue has no direction."""


class Neighbour(ReportPart):
    """A synthetic image, and the real training image nearest to it by features.

    Attributes:
        sample: number of the synthetic image.
        train: number of the training image.
    """

    sample: int
    train: int


class EncoderResult(EncoderFigures):
    """The result of the shard of one encoder.

    Attributes:
        nearest: neighbours of the images on the contact sheet; not part of the report.
    """

    nearest: tuple[Neighbour, ...]


def open_encoder(
    request: EvaluateRequest, name: str, material: Material, context: Context
) -> Encoder:
    """Load an encoder of the request.

    Raises:
        InputError: there is no such encoder, or its weights are not available.
    """
    return load_encoder(
        name,
        context.store,
        weights=request.encoder_weights.get(name),
        device=context.device,
        cohort=material.real.cohort,
    )


@dataclass
class ViewEncoder:
    """Encodes turned views of images, and reports its progress to the shard's context.

    Attributes:
        name: name of the encoder.
        encoder: the encoder.
        size: side of the central square that is encoded, pixels.
        context: context of the shard.
        total: number of views that the shard encodes in all.
        done: number of views encoded so far.
    """

    name: str
    encoder: Encoder
    size: int
    context: Context
    total: int
    done: int = 0

    def __call__(
        self,
        pairs: Pairs,
        chosen: Sequence[int],
        turns: Sequence[int],
        transform: Transform = lambda images: images,
    ) -> Float32:
        """Encode views of some images, to float32 (len(chosen), len(turns), dim).

        Args:
            pairs: the images.
            chosen: numbers of the images to encode.
            turns: numbers of quarter turns, one per view.
            transform: function that is applied to the images before they are turned.
        """
        parts = []
        for start in range(0, len(chosen), ENCODE_BATCH):
            batch = chosen[start : start + ENCODE_BATCH]
            images = transform(np.stack([centre(pairs.pair(n)[0], self.size) for n in batch]))
            views = [np.ascontiguousarray(np.rot90(images, turn, (1, 2))) for turn in turns]
            parts.append(np.stack([self.encoder.encode(view) for view in views], 1))
            self.done += len(batch) * len(turns)
            self.context.progress(self.done, self.total, self.name)
        return np.concatenate(parts)


@dataclass(frozen=True)
class EncodedSources:
    """Features of all sources of images.

    Attributes:
        numbers: source → numbers of the images that were encoded upright.
        upright: source → float32 (n, dim), features of these images.
        test: features of all views of the real test images.
        turned: source → features of all views of its images, for every source but the real test
            images; 'reconstruction' is one of them.
    """

    numbers: dict[str, list[int]]
    upright: dict[str, Float32]
    test: FeatureSet
    turned: dict[str, FeatureSet]


def encode_sources(
    name: str, encoder: Encoder, material: Material, context: Context
) -> EncodedSources:
    """Encode the images of all sources, and the reconstructions of the real test images."""
    sources: dict[str, Pairs] = {
        "test": material.test,
        "train": material.train,
        "dataset": material.synthetic,
        **material.named_rows,
    }
    numbers = {row: spread(len(pairs), MAX_IMAGES) for row, pairs in sources.items()}
    tested = numbers["test"]
    # A distance compares no more images of a source than there are real test images, so encode
    # the turned views of that many only.
    turned = {row: spread(len(own), len(tested)) for row, own in numbers.items()}
    total = sum(map(len, numbers.values())) + (TURNS - 1) * sum(map(len, turned.values()))
    encode = ViewEncoder(name, encoder, material.dataset.size, context, total + TURNS * len(tested))

    upright: dict[str, Float32] = {}
    encoded: dict[str, FeatureSet] = {}
    for row, pairs in sources.items():
        first = encode(pairs, numbers[row], [0])
        upright[row] = first[:, 0]
        chosen = [numbers[row][place] for place in turned[row]]
        others = encode(pairs, chosen, range(1, TURNS))
        encoded[row] = _feature_set(pairs, chosen, np.concatenate([first[turned[row]], others], 1))
    again = encode(material.test, tested, range(TURNS), autoencoder_of(material, context))
    encoded["reconstruction"] = _feature_set(material.test, tested, again)
    return EncodedSources(numbers, upright, encoded.pop("test"), encoded)


def _feature_set(pairs: Pairs, chosen: Sequence[int], values: Float32) -> FeatureSet:
    slides, regions = zip(*map(pairs.origins, chosen), strict=True)
    return FeatureSet(values, slides, regions)


def measure_encoder(
    request: EvaluateRequest, name: str, material: Material, context: Context
) -> EncoderResult:
    """Measure fidelity, leakage and retrieval by the features of one encoder.

    The Fréchet statistics of the real test images are stored beside the report, as a reference
    for other reports.

    Raises:
        InputError: the encoder, or the reference of the request, cannot be used.
    """
    encoder = open_encoder(request, name, material, context)
    encoded = encode_sources(name, encoder, material, context)
    upright, numbers = encoded.upright, encoded.numbers
    statistics = save_statistics(
        Moments(upright["test"].shape[1]).update(upright["test"]),
        encoder=name,
        source=f"{material.real.name} ({', '.join(request.real_test)})",
        size=material.dataset.size,
        mpp=material.dataset.mpp,
    )
    context.store.put(report_key(request.report, f"reference-{name}.safetensors"), statistics)
    patients = patients_of(material)
    rows = {row: encoded.turned[row] for row in material.rows}
    on_sheet = spread(len(numbers["dataset"]), COLUMNS)
    neighbours = nearest(upright["dataset"][on_sheet], upright["train"])
    return EncoderResult(
        **dict(fidelity(encoded.test, encoded.turned, request.seed)),
        encoder=name,
        license=encoder.license,
        reference=_reference_distance(request, name, upright["dataset"], material, context.store),
        leakage={
            row: authenticity(upright[row], upright["train"], upright["test"])
            for row in ("dataset", MAP_AND_CROPS)
            if row in upright
        },
        retrieval=crop_retrieval(context.store, material, encoder, request.seed),
        membership=patients
        and by_neighbours(
            upright["train"],
            upright["test"],
            upright["dataset"],
            (
                [patients[0][number] for number in numbers["train"]],
                [patients[1][number] for number in numbers["test"]],
            ),
            request.seed,
        ),
        per_patient=per_patient(encoded.test, rows, material.patients, request.seed),
        nearest=tuple(
            Neighbour(sample=numbers["dataset"][row], train=numbers["train"][near])
            for row, near in zip(on_sheet, neighbours, strict=True)
        ),
    )


def _reference_distance(
    request: EvaluateRequest,
    encoder: str,
    features: Float32,
    material: Material,
    store: Store,
) -> ReferenceDistance | None:
    """Compare features (n, dim) with the request's reference statistics, if it names any."""
    source = request.references.get(encoder)
    if source is None:
        return None
    path = Path(source) if Path(source).is_absolute() else store.local(source)
    try:
        reference = load_statistics(path.read_bytes())
        moments = Moments(features.shape[1]).update(features)
        dataset = material.dataset
        distance = reference.distance(moments, encoder=encoder, size=dataset.size, mpp=dataset.mpp)
    except (OSError, ValueError) as error:
        raise InputError(f"reference {source} cannot be used: {error}") from error
    return ReferenceDistance(
        source=reference.source, n=(len(features), reference.moments.count), frechet=distance
    )
