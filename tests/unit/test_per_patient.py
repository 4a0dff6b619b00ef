"""Kernel distances per patient, and the fine detail of images."""

from __future__ import annotations

import numpy as np
import pytest

from services.evaluate.detail import fine_power
from services.evaluate.fidelity import FeatureSet
from services.evaluate.per_patient import image_kernels, kernel_distance, per_patient

DIM, TILES, PATIENTS = 16, 8, 5


def tiles(centres: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one image of two views around each centre, float32 (n, 2, dim)."""
    return (centres[:, None] + 0.3 * rng.standard_normal((len(centres), 2, DIM))).astype(np.float32)


@pytest.fixture(scope="module")
def sets() -> tuple[FeatureSet, dict[str, FeatureSet]]:
    """Real tiles of five patients; `both` looks like its patient, `map` like everybody."""
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.standard_normal((PATIENTS, DIM)), TILES, 0)
    slides = tuple((f"slide-{number // TILES}",) for number in range(len(centres)))
    regions = tuple((f"region-{number}",) for number in range(len(centres)))
    anyone = centres[rng.permutation(len(centres))]
    rows = {
        name: FeatureSet(tiles(own, rng), slides, regions)
        for name, own in (("map", anyone), ("both", centres))
    }
    return FeatureSet(tiles(centres, rng), slides, regions), rows


PATIENT = {f"slide-{number}": f"patient-{number}" for number in range(PATIENTS)}


def test_images_that_look_like_their_patient_gain_all_that_there_is_to_gain(sets) -> None:
    test, rows = sets
    found = per_patient(test, rows, PATIENT, seed=0)
    assert found.patients == PATIENTS
    assert found.gain == pytest.approx(1, abs=0.1) == found.most
    assert found.gain_interval[0] <= found.gain <= found.gain_interval[1]
    assert abs(found.distance["same"]) < 0.1 * found.distance["other"]
    swapped = per_patient(test, {"map": rows["both"], "both": rows["both"]}, PATIENT, seed=0)
    assert swapped.gain == 0


def test_the_regions_that_an_image_was_made_from_do_not_count(sets) -> None:
    test, rows = sets
    copies = {**rows, "both": FeatureSet(test.values, test.slides, test.regions)}
    honest = {**rows, "both": FeatureSet(test.values, test.slides, test.regions[::-1])}
    distances = [
        per_patient(test, row, PATIENT, seed=0).distance["both"] for row in (copies, honest)
    ]
    assert distances[0] == pytest.approx(0, abs=1e-9)  # without the pairs of equal images
    assert distances[1] < distances[0]


def test_patients_with_few_tiles_or_of_no_known_origin_are_left_out(sets) -> None:
    test, rows = sets
    assert per_patient(test, rows, {"slide-0": "patient-0"}, seed=0) is None
    assert per_patient(test, {"both": rows["both"]}, PATIENT, seed=0) is None
    foreign = tuple((*slides, "slide-0") for slides in test.slides)  # a crop of another patient
    crossed = {name: FeatureSet(row.values, foreign, row.regions) for name, row in rows.items()}
    assert per_patient(test, crossed, PATIENT, seed=0) is None


def test_the_kernel_distance_is_that_of_its_definition() -> None:
    one, other = (np.random.default_rng(n).standard_normal((n + 3, 1, 4)) for n in (0, 1))
    found = kernel_distance(
        image_kernels(one, one),
        image_kernels(other, other),
        image_kernels(one, other),
        np.ones((3, 4), bool),
    )

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x[0] @ y[0] / 4 + 1) ** 3)

    within = [
        np.mean([kernel(x, y) for i, x in enumerate(own) for j, y in enumerate(own) if i != j])
        for own in (one, other)
    ]
    between = np.mean([kernel(x, y) for x in one for y in other])
    assert found == pytest.approx(within[0] + within[1] - 2 * between)


def test_fine_power_is_that_of_frequencies_beyond_a_quarter_cycle() -> None:
    columns = np.arange(64)

    def stripes(cycles: float, height: int = 20) -> np.ndarray:
        wave = 128 + height * np.sin(2 * np.pi * cycles * columns)
        return np.broadcast_to(wave[None, :, None], (64, 64, 3)).astype(np.uint8)

    coarse, fine = fine_power([stripes(0.1)]), fine_power([stripes(0.4)])
    assert coarse < 0.05 * fine
    assert fine_power([stripes(0.4, 40)]) == pytest.approx(4 * fine, rel=0.1)
    assert fine_power([stripes(0.4), stripes(0.1)]) == pytest.approx((fine + coarse) / 2)
