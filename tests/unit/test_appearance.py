"""What images are held against: the crops they were given, and the real images of their maps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from services.evaluate.appearance import (
    Sources,
    crop_pairs,
    find_crops,
    from_elsewhere,
    stain_errors,
)
from services.evaluate.data import SyntheticPairs
from services.synthesize.compose import Composer
from shared.contracts.base import Classes
from shared.contracts.regions import region_set_key
from shared.contracts.synthesize import CropSource, DatasetRequest, MapSource
from shared.datasets.region_bank import open_banks
from shared.datasets.samples import Sample
from shared.diffusion.crops import Crop
from shared.storage import DirectoryStore
from tests.models import publish_toy_model
from tests.region_sets import make_region_set

SIZE = 64


@dataclass(frozen=True)
class Made:
    """A dataset whose images are blank, or what they are replaced by."""

    store: DirectoryStore
    samples: list[Sample]
    crops: list[list[Crop]]

    def pairs(self, images: list[np.ndarray] | None = None) -> SyntheticPairs:  # type: ignore[type-arg]
        samples = self.samples
        if images is not None:
            samples = [s._replace(image=i) for s, i in zip(samples, images, strict=True)]
        return SyntheticPairs(Index(samples))  # type: ignore[arg-type]


class Index(list[Sample]):
    def provenance(self, number: int):  # type: ignore[no-untyped-def]
        return self[number].provenance


def compose(folder: Path, count: int, maps: MapSource, crops: CropSource, regions: int = 6) -> Made:
    store = DirectoryStore(folder)
    model = publish_toy_model(store, make_region_set(store, regions=regions, size=96), SIZE)
    record = make_region_set(store, "others", splits={"slide-x": "train"}, size=96)
    turned = record.model_copy(update={"classes": Classes.of("tumor", "stroma")})
    store.put_json(region_set_key("others"), turned)
    request = DatasetRequest(dataset="d", model="toy", images=count, maps=maps, crops=crops)
    banks = open_banks(store, request, model)
    composer = Composer(request, model, *banks)
    made = [composer.compose(number, number % len(banks[0])) for number in range(count)]
    blank = np.zeros((SIZE, SIZE, 3), np.uint8)
    samples = [Sample(blank, each.labels, each.provenance) for each in made]
    return Made(store, samples, [each.crops for each in made])


@pytest.mark.parametrize(("maps", "crops"), [(None, None), ("others", None), (None, "others")])
def test_crops_and_real_images_are_found_again(
    tmp_path: Path, maps: str | None, crops: str | None
) -> None:
    """Also where maps and crops come from two sets, whose labels have other numbers."""
    made = compose(tmp_path, 12, MapSource(regions=maps), CropSource(regions=crops))
    sources = Sources(made.store, made.pairs())
    for sample, given in zip(made.samples, made.crops, strict=True):
        for origin, crop in zip(sample.provenance.crops, given, strict=True):
            assert np.array_equal(sources.crop(sample.provenance, origin), crop.pixels)
        real = sources.real(sample)
        shades = [real[sample.labels == label].mean() for label in (1, 2)]
        dark = 1 if maps else 2  # the other set calls what is dark stroma
        assert shades[2 - dark] - shades[dark - 1] > 40
    assert {sample.provenance.symmetry for sample in made.samples} > {0}


def test_real_images_have_the_stain_error_of_real_regions(tmp_path: Path) -> None:
    made = compose(tmp_path, 12, MapSource(), CropSource(slide="same"))
    sources = Sources(made.store, made.pairs())
    assert all(from_elsewhere(s.provenance) == s.provenance.crops for s in made.samples)
    real = made.pairs([sources.real(sample) for sample in made.samples])
    errors = stain_errors(made.store, {"both": real, "blank": made.pairs()})
    assert errors["both"] == pytest.approx(errors["real"])
    assert errors["blank"] > 5 * errors["real"]
    windows = crop_pairs(made.store, real, 0).windows
    again = crop_pairs(made.store, made.pairs(), 0, real=True).windows
    assert all(np.array_equal(one, other) for one, other in zip(windows, again, strict=True))


def test_a_crop_of_the_maps_own_region_tells_nothing_of_others(tmp_path: Path) -> None:
    """A slide of one region gives the crop and the real image that it would be held against."""
    made = compose(tmp_path, 4, MapSource(), CropSource(slide="same"), regions=1)
    assert not any(from_elsewhere(sample.provenance) for sample in made.samples)
    assert "real" not in stain_errors(made.store, {"both": made.pairs()})
    assert len(crop_pairs(made.store, made.pairs(), 0).crops) == 8
    none = crop_pairs(made.store, made.pairs(), 0, real=True)
    assert not none.crops
    assert find_crops(none, None, 0).top1 is None
