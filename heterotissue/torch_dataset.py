"""A synthetic dataset as a torch `Dataset`, to train a segmenter on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from shared.datasets.samples import DatasetIndex


class TorchDataset(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of image, float32 (3, size, size) in [0, 1], and mask, int64 (size, size) of labels."""

    def __init__(self, samples: DatasetIndex) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask, _ = self._samples[index]
        pixels = torch.from_numpy(image).permute(2, 0, 1).float().div(255)
        return pixels, torch.from_numpy(mask).long()
