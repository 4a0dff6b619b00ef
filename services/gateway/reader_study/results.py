"""Computes the results of a study: compares the answers with the key."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from services.gateway.reader_study.readings import read_answers
from services.gateway.reader_study.records import Key, Series, StudyRecord, Truth
from services.gateway.reader_study.statistics import (
    UNKNOWN,
    around,
    bootstrap_means,
    cohen_kappa,
    detection,
    fleiss_kappa,
    wilson,
)
from services.gateway.reader_study.studies import find_submitted
from shared.arrays import Float64
from shared.contracts.reader_study import (
    KINDS,
    Agreement,
    Answer,
    GroupResult,
    Interval,
    Kind,
    PairAgreement,
    QualityResult,
    ReaderResult,
    StudyResults,
    study_key,
)
from shared.storage import Store

COLUMNS = (
    "reader", "name", "position", "picture", "truth", "set", "key", "tissue", "answer", "correct",
    "quality", "seconds", "changed", "answered", "note",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One answer of a reader, with the truth of the picture.

    Attributes:
        reader: id of the reader (r1, r2, …).
        position: position of the picture in the reader's series, from 1.
        truth: kind and origin of the picture.
        answer: answer of the reader.
    """

    reader: str
    position: int
    truth: Truth
    answer: Answer

    @property
    def correct(self) -> bool:
        """Whether the answer names the true kind."""
        return self.answer.answer == self.truth.kind

    @property
    def called_synthetic(self) -> bool:
        """Whether the reader called the image synthetic."""
        return self.answer.answer == "synthetic"


def read_rows(store: Store, record: StudyRecord) -> list[Row]:
    """Return all answers, reader by reader, each in the order of the reader's series."""
    key = store.get_model(study_key(record.study, "key.json"), Key)
    truths = {truth.picture: truth for truth in key.pictures}
    rows = []
    for reader in record.readers:
        series = store.get_model(study_key(record.study, f"series/{reader}.json"), Series)
        answers = read_answers(store, record.study, reader)
        rows += [
            Row(reader, position, truths[place.picture], answers[place.image])
            for position, place in enumerate(series.places, 1)
            if place.image in answers
        ]
    return rows


def study_results(store: Store, record: StudyRecord) -> StudyResults:
    """Compute the results of a study from the answers so far."""
    rows = read_rows(store, record)
    readers = tuple(
        _reader(reader, name, [row for row in rows if row.reader == reader])
        for reader, name in record.readers.items()
    )
    return StudyResults(
        study=record.study,
        complete=all(find_submitted(store, record.study, reader) for reader in record.readers),
        pooled=_pooled(rows),
        readers=readers,
        classes=tuple(_groups(rows, lambda truth: truth.tissue)),
        sets=tuple(_groups(rows, lambda truth: truth.source)),
        agreement=_agreement(rows, list(record.readers)),
    )


def _reader(reader: str, name: str, rows: Sequence[Row]) -> ReaderResult:
    """Return the result of one reader.

    Wilson's intervals are valid here, because each answer is about a different image.
    """
    synthetic, real = _of(rows, "synthetic"), _of(rows, "real")
    return _result(
        reader,
        name,
        rows,
        accuracy=wilson(sum(row.correct for row in rows), len(rows)),
        sensitivity=wilson(sum(row.correct for row in synthetic), len(synthetic)),
        specificity=wilson(sum(row.correct for row in real), len(real)),
    )


def _pooled(rows: Sequence[Row]) -> ReaderResult:
    """Return the result of all readers together; intervals come from a bootstrap.

    Accuracy is the mean of sensitivity and specificity, because a study has the same number of
    real and of synthetic images.
    """
    accuracy = sensitivity = specificity = UNKNOWN
    if _of(rows, "synthetic") and _of(rows, "real"):
        shares = [_mean([row.correct for row in _of(rows, kind)]) for kind in KINDS]
        drawn = _replicates(rows, lambda row: row.correct)
        specificity, sensitivity = (around(shares[i], drawn[:, i]) for i in range(2))
        accuracy = around(sum(shares) / 2, drawn.mean(1))
    return _result(
        None, None, rows, accuracy=accuracy, sensitivity=sensitivity, specificity=specificity
    )


def _result(
    reader: str | None,
    name: str | None,
    rows: Sequence[Row],
    *,
    accuracy: Interval,
    sensitivity: Interval,
    specificity: Interval,
) -> ReaderResult:
    synthetic, real = _of(rows, "synthetic"), _of(rows, "real")
    d_prime, criterion = detection(
        sum(row.called_synthetic for row in synthetic),
        len(synthetic),
        sum(row.called_synthetic for row in real),
        len(real),
    )
    difference = UNKNOWN
    if synthetic and real:
        drawn = _replicates(rows, lambda row: row.answer.quality)
        means = [_mean([row.answer.quality for row in part]) for part in (real, synthetic)]
        difference = around(means[1] - means[0], drawn[:, 1] - drawn[:, 0])
    return ReaderResult(
        reader=reader,
        name=name,
        answers=len(rows),
        accuracy=accuracy,
        sensitivity=sensitivity,
        specificity=specificity,
        d_prime=d_prime,
        criterion=criterion,
        quality={"real": _quality(real), "synthetic": _quality(synthetic)},
        quality_difference=difference,
        median_seconds=float(np.median([row.answer.seconds for row in rows])) if rows else None,
    )


def _of(rows: Sequence[Row], kind: Kind) -> list[Row]:
    return [row for row in rows if row.truth.kind == kind]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _quality(rows: Sequence[Row]) -> QualityResult:
    ratings = [row.answer.quality for row in rows]
    one, two, three, four, five = (ratings.count(number) for number in range(1, 6))
    return QualityResult(
        answers=len(ratings),
        mean=_mean(ratings) if ratings else None,
        counts=(one, two, three, four, five),
    )


def _replicates(rows: Sequence[Row], value: Callable[[Row], float]) -> Float64:
    """Return bootstrap replicates of the mean value of each kind.

    Returns:
        float64 (replicates, kinds) for the kinds that occur in `rows`, real first.
    """
    readers = sorted({row.reader for row in rows})
    pictures = sorted({(row.truth.kind, row.truth.picture) for row in rows})
    columns = {picture: number for number, (_, picture) in enumerate(pictures)}
    table = np.full((len(readers), len(pictures)), np.nan)
    for row in rows:
        table[readers.index(row.reader), columns[row.truth.picture]] = value(row)
    kinds = np.array([kind for kind, _ in pictures])
    return bootstrap_means(table, np.unique(kinds, return_inverse=True)[1])


def _groups(rows: Sequence[Row], group: Callable[[Truth], str]) -> Iterator[GroupResult]:
    """Yield the results of the images that share a property, for each kind of image."""
    for name in sorted({group(row.truth) for row in rows}):
        for kind in KINDS:
            own = [row for row in _of(rows, kind) if group(row.truth) == name]
            if own:
                share = _mean([row.called_synthetic for row in own])
                drawn = _replicates(own, lambda row: row.called_synthetic)
                yield GroupResult(
                    group=name,
                    kind=kind,
                    images=len({row.truth.picture for row in own}),
                    answers=len(own),
                    called_synthetic=around(share, drawn[:, 0]),
                    mean_quality=_mean([row.answer.quality for row in own]),
                )


def _agreement(rows: Sequence[Row], readers: Sequence[str]) -> Agreement:
    calls = {
        reader: {row.truth.picture: row.called_synthetic for row in rows if row.reader == reader}
        for reader in readers
    }

    def together(*chosen: str) -> NDArray[np.bool_]:
        common = sorted(set.intersection(*(set(calls[reader]) for reader in chosen)))
        return np.array([[calls[reader][name] for name in common] for reader in chosen], bool)

    everybody = together(*readers)
    pairs = ((pair, together(*pair)) for pair in combinations(readers, 2))
    return Agreement(
        fleiss=fleiss_kappa(everybody),
        images=everybody.shape[1],
        pairs=tuple(
            PairAgreement(readers=pair, images=answers.shape[1], cohen=cohen_kappa(*answers))
            for pair, answers in pairs
        ),
    )


def results_csv(store: Store, record: StudyRecord) -> str:
    """Return all answers with the truth of their pictures, as CSV text with `COLUMNS`."""
    body = io.StringIO()
    writer = csv.writer(body, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in read_rows(store, record):
        truth, answer = row.truth, row.answer
        writer.writerow(
            [
                row.reader, _cell(record.readers[row.reader]), row.position, truth.picture,
                truth.kind, truth.source, truth.key, _cell(truth.tissue), answer.answer,
                int(row.correct), answer.quality, answer.seconds, int(answer.changed),
                answer.answered.isoformat(), _cell(answer.note),
            ]
        )  # fmt: skip
    return body.getvalue()


def _cell(text: str) -> str:
    """Put an apostrophe before text that a spreadsheet would take for a formula."""
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text
