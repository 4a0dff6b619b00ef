"""Read a synthetic dataset: the image, label map and provenance of each sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shared.contracts.base import Classes
from shared.contracts.synthesize import DatasetRecord, Provenance
from shared.datasets.samples import DatasetIndex, Sample, load_dataset
from shared.storage import Store

if TYPE_CHECKING:
    from heterotissue.torch_dataset import TorchDataset


class SyntheticDataset:
    """The samples of a finished dataset; each sample is read from its shard at its access.

    A sample unpacks into an image, uint8 RGB (size, size, 3), its label map, uint8
    (size, size), and its `Provenance`.

    Args:
        store: the store that holds the dataset.
        record: the dataset's record.

    Attributes:
        record: the dataset's record.
    """

    def __init__(self, store: Store, record: DatasetRecord) -> None:
        self.record = record
        self._samples = DatasetIndex(store, record)

    @property
    def classes(self) -> Classes:
        """Names and colours of the classes of the label maps."""
        return self.record.classes

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]

    def __iter__(self) -> Iterator[Sample]:
        return (self._samples[index] for index in range(len(self)))

    def provenance(self, index: int) -> Provenance:
        """Read the provenance of a sample, without its pixels."""
        return self._samples.provenance(index)

    def torch(self) -> TorchDataset:
        """Return a torch `Dataset` of the samples as image and mask tensors."""
        from heterotissue.torch_dataset import TorchDataset

        return TorchDataset(self._samples)


def open_dataset(store: Store, name: str) -> SyntheticDataset:
    """Open a finished dataset.

    Args:
        store: the store that holds the dataset.
        name: name of the dataset.

    Raises:
        ObjectNotFoundError: the store has no finished dataset of this name.
    """
    return SyntheticDataset(store, load_dataset(store, name))
