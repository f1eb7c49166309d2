"""Reduce real datasets to a few slices or downsampled volumes per case, so that a CPU trains on them in seconds.

This module provides the data of the runs behind the curves; it does not train.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from candy_monai import NNUNetDataset

SLICES = 6
"""Slices taken of each volume, evenly among those with foreground."""
MOST_SAMPLES = 96
MOST_CLASSES = 5
FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class SmallCases:
    """Images ``(C, *spatial)`` and label ids ``(1, *spatial)`` of one size, the slices of a case in sequence."""

    images: list[Tensor]
    labels: list[Tensor]
    num_classes: int


def load_small_cases(folder: Path, size: tuple[int, ...], cache: Path) -> SmallCases:
    """Return the dataset's cases as slices ``(H, W)`` or volumes ``(D, H, W)`` of ``size``.

    Args:
        folder: An nnU-Net dataset folder, which is only read.
        size: Two numbers for slices, three for volumes.
        cache: Where the result is stored for the next run.
    """
    file = cache / f"{folder.name}-{'x'.join(map(str, size))}.pt"
    if file.is_file():
        return SmallCases(**torch.load(file, weights_only=True))
    images, labels = [], []
    dataset = NNUNetDataset(folder)
    for index in range(len(dataset)):
        image, label = dataset[index]
        for part_image, part_label in _parts(image.as_tensor(), label.as_tensor(), len(size)):
            images.append(_resized(part_image, size, mode="linear"))
            labels.append(_resized(part_label.float(), size, mode="nearest-exact").long())
        if len(images) >= MOST_SAMPLES:
            break
    kept = _largest_classes(labels)
    labels = [_renumbered(label, kept) for label in labels]
    cache.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "labels": labels, "num_classes": len(kept) + 1}
    torch.save(content, file)
    return SmallCases(**content)


def divided(cases: SmallCases, num_training: int, num_validation: int) -> tuple[list[int], list[int]]:
    """Return the indices of training and validation samples, the latter from the end, so that they share no case."""
    total = len(cases.images)
    num_validation = min(num_validation, max(1, total // 3))
    last = total - max(num_validation, total // 4)
    num_training = min(num_training, last)
    training = [round(i * last / num_training) for i in range(num_training)]
    validation = list(range(total - num_validation, total))
    return training, validation


def folded(cases: SmallCases, num_training: int, num_validation: int, fold: int) -> tuple[list[int], list[int]]:
    """Return the training and validation indices of one of `FOLDS` folds, with disjoint validation samples."""
    total = len(cases.images)
    start, stop = fold * total // FOLDS, (fold + 1) * total // FOLDS
    rest = [i for i in range(total) if not start <= i < stop]
    return _evenly(rest, num_training), _evenly(list(range(start, stop)), num_validation)


def seed_of(text: str) -> int:
    """Return a number that depends only on the text."""
    return zlib.crc32(text.encode())


def _evenly(indices: list[int], count: int) -> list[int]:
    count = min(count, len(indices))
    return [indices[i * len(indices) // count] for i in range(count)]


def _parts(image: Tensor, label: Tensor, num_dims: int) -> list[tuple[Tensor, Tensor]]:
    if image.ndim == num_dims + 1:
        return [(image, label)]
    if image.shape[-1] == 1:
        return [(image[..., 0], label[..., 0])]
    filled = (label[0] > 0).flatten(0, 1).sum(0).nonzero().flatten().tolist()
    count = min(len(filled), SLICES if len(filled) < 60 else 40)
    chosen = [filled[round((i + 0.5) * len(filled) / count - 0.5)] for i in range(count)]
    return [(image[..., place], label[..., place]) for place in chosen]


def _resized(values: Tensor, size: tuple[int, ...], *, mode: str) -> Tensor:
    if mode == "linear":
        mode = "bilinear" if len(size) == 2 else "trilinear"
        axes = tuple(range(1, values.ndim))
        values = (values - values.mean(axes, keepdim=True)) / values.std(axes, keepdim=True).clamp(min=1e-6)
    return F.interpolate(values[None], size, mode=mode)[0].contiguous()


def _largest_classes(labels: list[Tensor]) -> list[int]:
    ids, counts = torch.cat([label.flatten() for label in labels]).unique(return_counts=True)
    order = counts.argsort(descending=True)
    return sorted([int(ids[i]) for i in order if ids[i] != 0][: MOST_CLASSES - 1])


def _renumbered(label: Tensor, kept: list[int]) -> Tensor:
    result = torch.zeros_like(label)
    for new, old in enumerate(kept, start=1):
        result[label == old] = new
    return result
