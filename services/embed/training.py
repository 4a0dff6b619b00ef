"""Self-supervised training of the embedded encoder, on patches of its cohort.

The training is contrastive (SimCLR, Chen et al. 2020), adapted to tissue:

- The two views of an image are cut at different places of a wider window, because patches a
  few cells apart mostly show the same tissue.
- Views are turned, mirrored and restained, because tissue has no direction and its staining
  varies.
- All patches of a batch come from one slide, so that they differ by their tissue and not by the
  staining of their slides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from services.embed.encoding import read_corners
from shared.arrays import Int64, UInt8
from shared.contracts.embed import EmbedRequest, embedded_key
from shared.contracts.ingest import CohortRecord
from shared.encoders import IMAGENET, PatchNet, normalized, random_net
from shared.errors import InputError
from shared.imaging.slide import DamagedError, Slide
from shared.imaging.stored_slides import open_slide
from shared.jobs import Context

SIDE = 64
"""Side of a view, pixels."""

WINDOW = 96
"""Side of the window that two views are cut from, pixels."""

BATCH = 96
TEMPERATURE = 0.2
PROJECTION = 96

MIN_WINDOWS = 32
"""Fewest windows of a slide. A step contrasts windows of one slide, so a few teach nothing."""

LEARNING_RATE = 1e-3
"""Learning rate. At twice this rate, or without gradient clipping, the features of all views may
collapse to one value on some processors."""


def view(window: UInt8, rng: np.random.Generator) -> UInt8:
    """Cut a random view out of a window; turn, mirror, restain and sometimes blur it.

    Args:
        window: uint8 RGB (WINDOW, WINDOW, 3).
        rng: generator of all draws.

    Returns:
        uint8 RGB (SIDE, SIDE, 3).
    """
    side = int(rng.integers(52, 77))
    y, x = rng.integers(window.shape[0] - side + 1, size=2)
    crop = np.ascontiguousarray(np.rot90(window[y : y + side, x : x + side], int(rng.integers(4))))
    image = cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        image = cv2.flip(image, 1)
    gain = np.exp(rng.normal(0, 0.25) + rng.normal(0, 0.15, 3))
    levels = (np.arange(256) + 1) / 256
    table = np.clip(256 * levels[:, None] ** gain[None] - 1, 0, 255).astype(np.uint8)
    image = cv2.LUT(image, table[:, None, :])
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.2))
    return np.asarray(image, np.uint8)


def contrastive_loss(first: Tensor, second: Tensor) -> Tensor:
    """NT-Xent loss: each view must find its partner among the 2N - 1 other views.

    Args:
        first, second: projections (N, d) of the first and second views of N windows.

    Returns:
        The mean loss, a scalar.
    """
    joined = functional.normalize(torch.cat([first, second]), dim=1)
    scores = joined @ joined.T / TEMPERATURE
    scores.fill_diagonal_(-torch.inf)
    count = len(first)
    partner = torch.arange(2 * count, device=scores.device).roll(count)
    return functional.cross_entropy(scores, partner)


def train_encoder(
    windows: UInt8,
    slides: Int64,
    steps: int,
    seed: int,
    device: str,
    report: Callable[[int, int, str], None],
) -> PatchNet:
    """Train the embedded encoder.

    Args:
        windows: uint8 RGB (N, WINDOW, WINDOW, 3).
        slides: int64 (N,), number of each window's slide.
        steps: number of steps, each on up to `BATCH` windows of one slide.
        seed: seed of the weights and of all draws.
        device: 'cpu' or 'cuda'.
        report: called with the number of finished steps, the number of all steps, and a note.

    Returns:
        The trained network, in evaluation mode.
    """
    net = random_net(seed).to(device)
    head = nn.Sequential(nn.Linear(net.dim, 192), nn.ReLU(), nn.Linear(192, PROJECTION))
    generator = torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    head = head.to(device)
    parameters = [*net.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=max(2, steps)
    )
    rng = np.random.default_rng([seed, 7])
    for step in range(steps):
        members = np.flatnonzero(slides == slides[rng.integers(len(slides))])
        chosen = rng.choice(members, min(BATCH, len(members)), replace=False)
        views = [np.stack([view(windows[i], rng) for i in chosen]) for _ in range(2)]
        pixels = normalized(torch.from_numpy(np.concatenate(views)).to(device), IMAGENET)
        first, second = head(net(pixels)).chunk(2)
        loss = contrastive_loss(first, second)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        report(step + 1, steps, f"loss {loss.item():.3f}")
    return net.eval()


def fit_encoder(request: EmbedRequest, record: CohortRecord, context: Context) -> dict[str, Any]:
    """Train the embedded encoder on windows centred on patches.

    Each training slide gives as many; of more slides than can give `MIN_WINDOWS`, some are drawn.
    Windows are read at the resolution at which a patch is 64 px wide. Returns `windows`, their
    number.
    """
    slides, most = record.of_split("train"), max(1, request.train_patches // MIN_WINDOWS)
    rng = np.random.default_rng([request.seed, 3])
    if len(slides) > most:
        slides = sorted(rng.permutation(slides)[:most].tolist())
    per_slide = max(1, request.train_patches // max(1, len(slides)))
    windows: list[UInt8] = []
    numbers: list[int] = []
    for number, name in enumerate(slides):
        corners = read_corners(context.store, record, name)
        chosen = np.sort(rng.permutation(len(corners))[:per_slide])
        with open_slide(context.store, record, name) as (slide, _):
            mpp = record.patches.mpp * record.patches.size / 64
            margin = (WINDOW - 64) / 2 * mpp
            for x, y in corners[chosen]:
                corner = (round(x - margin / slide.mpp), round(y - margin / slide.mpp_y))
                try:
                    windows.append(_read(slide, *corner, WINDOW, mpp))
                except DamagedError:
                    continue
                numbers.append(number)
        context.progress(0, request.train_steps, f"read {name}")
    if len(windows) < 2:
        raise InputError(
            f"cohort {request.cohort!r} has {len(windows)} patches in its train split, too few to "
            "train an encoder: add slides, or lower min_tissue"
        )
    net = train_encoder(
        np.stack(windows), np.array(numbers), request.train_steps, request.seed, context.device,
        context.progress,
    )  # fmt: skip
    data = safetensors.torch.save({k: v.cpu() for k, v in net.state_dict().items()})
    context.store.put(embedded_key(request.cohort), data)
    return {"windows": len(windows)}


def _read(slide: Slide, x: int, y: int, side: int, mpp: float) -> UInt8:
    """Read a square of `side` pixels; enlarge it if `mpp` is finer than the slide."""
    finest = max(mpp, slide.finest)
    pixels = max(1, round(side * mpp / finest))
    image = slide.read(x, y, (pixels, pixels), finest)
    if pixels == side:
        return image
    return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)
