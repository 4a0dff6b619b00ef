"""The segmenter that measures usefulness and label faithfulness: DeepLabV3+ (Chen et al. 2018).

If labels are not exhaustive, label 0 means background or unlabelled tissue, so it is neither
learned nor scored. If they are exhaustive, label 0 is a class like the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from services.evaluate.data import Pairs, centre
from shared.arrays import Int64, UInt8
from shared.contracts.base import Classes
from shared.contracts.evaluate import ReportPart
from shared.encoders import IMAGENET, REGISTRY, packaged_state, packaged_weights
from shared.errors import InputError
from shared.imaging.augment import restain, stain_table, symmetry

LEARNING_RATE = 3e-3

OUTPUT_STRIDE = 16
"""Output stride of DeepLabV3+: the side of its images must be a multiple of this."""

IGNORED = -1
"""Target of pixels that are not learned; other pixels have their label minus `first`."""


def make_segmenter(encoder: str, classes: Classes, seed: int) -> nn.Module:
    """Make a DeepLabV3+ that predicts the labels from `classes.first` on.

    Args:
        encoder: name of an encoder of `shared.encoders`, which starts from the ImageNet weights
            of its package; or of an encoder of segmentation_models_pytorch, which starts from
            random weights.
        classes: classes of the label maps.
        seed: seed of the random weights.

    Raises:
        InputError: there is no such encoder.
    """
    check_encoder(encoder)
    torch.manual_seed(seed)
    known = REGISTRY.get(encoder)
    if known is not None:
        kinds = len(classes) - classes.first
        network = smp.DeepLabV3Plus(f"tu-{known.architecture}", encoder_weights=None, classes=kinds)
        classifier = timm.create_model(known.architecture)
        state, own = packaged_state(known.package, classifier), network.encoder.model
        own.load_state_dict({name: state[name] for name in own.state_dict()})
        return nn.Sequential(_ImageNetInput(), network)
    model: nn.Module = smp.DeepLabV3Plus(
        encoder, encoder_weights=None, classes=len(classes) - classes.first
    )
    return model


class _ImageNetInput(nn.Module):
    """Rescales images in [-1, 1] to the mean and deviation that ImageNet weights expect."""

    def forward(self, images: Tensor) -> Tensor:
        mean, std = (images.new_tensor(v).view(1, 3, 1, 1) for v in IMAGENET)
        return (images / 2 + 0.5 - mean) / std


def check_encoder(encoder: str) -> None:
    """Raise `InputError` if no segmenter can be made with this encoder."""
    names = smp.encoders.get_encoder_names()
    known = REGISTRY.get(encoder)
    if known is not None and known.package:
        packaged_weights(known.package)
    elif encoder not in names and not encoder.startswith("tu-"):
        raise InputError(
            f"segmentation_models_pytorch has no encoder {encoder!r}: take one of "
            f"{', '.join(sorted(names)[:12])}, …, or 'tu-<timm model>'"
        )


def check_segmenter(encoder: str, classes: Classes, size: int) -> None:
    """Raise `InputError` if no segmenter can be made and run; only shapes are computed."""
    check_encoder(encoder)
    try:
        with torch.device("meta"):
            model = smp.DeepLabV3Plus(
                f"tu-{REGISTRY[encoder].architecture}" if encoder in REGISTRY else encoder,
                encoder_weights=None,
                classes=len(classes) - classes.first,
            )
            model(torch.empty(2, 3, size, size))
    except (ValueError, RuntimeError, KeyError) as error:
        raise InputError(
            f"no segmenter with encoder {encoder!r} for images of {size} px: {error}"
        ) from error


def to_input(images: UInt8) -> Tensor:
    """Turn uint8 RGB (n, h, w, 3) into float32 (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_segmenter(
    model: nn.Module,
    pairs: Pairs,
    *,
    first: int,
    size: int,
    steps: int,
    batch: int,
    seed: int,
    device: str,
    progress: Callable[[int], None],
    synthetic: Pairs | None = None,
) -> None:
    """Train a segmenter in place, on randomly turned, mirrored and restained windows.

    The loss is cross-entropy plus soft Dice, because with cross-entropy alone the segmenter may
    ignore rare classes. The optimizer is AdamW with a one-cycle schedule. The windows of a step
    depend only on the seed, the step and the images.

    Args:
        model: a segmenter made by `make_segmenter`.
        pairs: images to train on.
        first: smallest label that is learned.
        size: side of a window, pixels.
        steps: number of optimizer steps.
        batch: number of windows in a step.
        seed: seed of windows, turns and stains.
        device: 'cpu' or 'cuda'.
        progress: called with the number of finished steps.
        synthetic: images to mix in. They are half of the first batch, and their share falls to 0
            at the end, so that the last steps correct the generator's errors.
    """
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=1e-2)
    dice = smp.losses.DiceLoss("multiclass", ignore_index=IGNORED)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for step in range(steps):
        rng = np.random.default_rng([seed, step])
        parts = [(pairs, batch)]
        if synthetic is not None:
            others = round(batch / 2 * (1 - step / steps))
            parts = [(pairs, batch - others), (synthetic, others)]
        images, labels = _draw(parts, size, rng)
        target = torch.from_numpy(labels.astype(np.int64)).to(device) - first
        scores = model(to_input(images).to(device))
        labelled = (target != IGNORED).sum().clamp(min=1)
        loss = F.cross_entropy(scores, target, ignore_index=IGNORED, reduction="sum") / labelled
        loss = loss + dice(scores, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(step + 1)


def _draw(
    parts: Sequence[tuple[Pairs, int]], size: int, rng: np.random.Generator
) -> tuple[UInt8, UInt8]:
    """Draw random windows with their labels.

    Args:
        parts: images, and the number of windows to draw from them.
        size: side of a window, pixels.
        rng: generator of all draws.

    Returns:
        uint8 RGB (n, size, size, 3), and uint8 labels (n, size, size).
    """
    images, labels = [], []
    for pairs, count in parts:
        for number in rng.integers(len(pairs), size=count).tolist():
            image, mask = pairs.pair(number)
            x, y = rng.integers(image.shape[0] - size + 1, size=2)
            window, which = np.s_[y : y + size, x : x + size], int(rng.integers(8))
            images.append(restain(symmetry(image[window], which), stain_table(rng)))
            labels.append(symmetry(mask[window], which))
    return np.stack(images), np.stack(labels)


@torch.inference_mode()
def confusion(
    model: nn.Module,
    pairs: Pairs,
    numbers: Sequence[int],
    *,
    classes: Classes,
    size: int,
    batch: int,
    device: str,
    progress: Callable[[int], None],
) -> Int64:
    """Count pixels by true and predicted label, over the central squares of images.

    Args:
        model: a trained segmenter.
        pairs: images with their true label maps.
        numbers: numbers of the images to score.
        classes: classes of the label maps; pixels with labels below `classes.first` are ignored.
        size: side of the central square, pixels.
        batch: number of images in a batch.
        device: 'cpu' or 'cuda'.
        progress: called with the number of finished images.

    Returns:
        int64 (classes, classes), true by predicted label; row and column 0 stay empty if label 0
        is not scored.
    """
    model.to(device).eval()
    kinds, first = len(classes), classes.first
    counts = np.zeros(kinds * kinds, np.int64)
    for start in range(0, len(numbers), batch):
        chosen = [pairs.pair(number) for number in numbers[start : start + batch]]
        images = np.stack([centre(image, size) for image, _ in chosen])
        truth = np.stack([centre(mask, size) for _, mask in chosen]).astype(np.int64)
        predicted = model(to_input(images).to(device)).argmax(1).cpu().numpy() + first
        labelled = truth >= first
        cells = truth[labelled] * kinds + predicted[labelled]
        counts += np.bincount(cells, minlength=kinds * kinds)
        progress(min(start + batch, len(numbers)))
    return counts.reshape(kinds, kinds)


class IouScores(ReportPart):
    """Scores of one segmenter.

    Attributes:
        mean_iou: mean IoU of the classes that occur in the true label maps; None if none occurs.
        accuracy: share of correct pixels among the labelled ones; None if no pixel is labelled.
        iou: TP / (TP + FP + FN) of each class, from `classes.first` on; None for a class that
            does not occur in the true label maps.
    """

    mean_iou: float | None
    accuracy: float | None
    iou: tuple[float | None, ...]


def iou_scores(counts: Int64, first: int) -> IouScores:
    """Compute IoU and accuracy of labels `first` and above from the counts of `confusion`."""
    hit = np.diag(counts).astype(float)
    union = counts.sum(0) + counts.sum(1) - hit
    present = counts.sum(1) > 0
    iou = tuple(float(hit[c] / union[c]) if present[c] else None for c in range(first, len(counts)))
    known = [value for value in iou if value is not None]
    total = counts.sum()
    return IouScores(
        mean_iou=float(np.mean(known)) if known else None,
        accuracy=float(hit.sum() / total) if total else None,
        iou=iou,
    )
