"""Bring images, labels and scores to another grid over the same space.

Owns interpolation. Which grid is decided by ``candy_monai.data.preprocessing``. Voxels are boxes:
the first and the last end where they ended before, as in nnU-Net and in PyTorch with ``align_corners=False``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import scipy.ndimage
import torch
from torch import Tensor
from torch.nn import functional as F

from candy_monai.aliases import Shape

_CUBIC: Literal[3] = 3
_LINEAR: Literal[1] = 1
_MODES = {2: "bilinear", 3: "trilinear"}


def resample_image(image: Tensor, shape: Shape, *, coarse_axis: int | None = None) -> Tensor:
    """Resample intensities by a cubic spline, linearly across thick slices; the range of each channel is kept.

    A spline is linear in its samples, so each axis is one matrix product: exact, and much faster than evaluating the
    spline voxel by voxel.

    Args:
        image: ``(C, *spatial)`` float32.
        shape: The new spatial shape.
        coarse_axis: The axis across thick slices, where a cubic would ring from slice to slice.

    Returns:
        ``(C, *shape)``; the input itself where the shape is already right.
    """
    if tuple(image.shape[1:]) == tuple(shape):
        return image
    result = image
    for axis, size in enumerate(shape):
        if image.shape[axis + 1] != size:
            weights = _spline_weights(image.shape[axis + 1], size, _LINEAR if axis == coarse_axis else _CUBIC)
            result = (result.movedim(axis + 1, -1) @ weights.to(image.device).T).movedim(-1, axis + 1)
    flat = image.flatten(1)
    low, high = (bound.view(-1, *[1] * len(shape)) for bound in (flat.amin(1), flat.amax(1)))
    return result.clamp(low, high).contiguous()


def resample_label(label: Tensor, shape: Shape, *, coarse_axis: int | None = None) -> Tensor:
    """Resample label ids: each new voxel gets the id that covers most of it, so that no id is ever invented.

    Each foreground id is interpolated linearly in its own box alone; what no id covers is background. Neither memory
    nor, for ids in small boxes, time grows with their number. Thick slices are copied, not blended.

    Args:
        label: ``(1, *spatial)`` integer, 0 or more.
        shape: The new spatial shape.
        coarse_axis: The axis across thick slices.

    Returns:
        ``(1, *shape)`` of the same type; the input itself where the shape is already right.
    """
    if tuple(label.shape[1:]) == tuple(shape):
        return label
    if coarse_axis is not None:
        old, new = label.shape[coarse_axis + 1], shape[coarse_axis]
        nearest = ((torch.arange(new, device=label.device) + 0.5) * (old / new)).long().clamp_max(old - 1)
        label = label.index_select(coarse_axis + 1, nearest)
    ids = label[0]
    result = torch.zeros(shape, dtype=label.dtype, device=label.device)
    best, covered = (torch.zeros(shape, device=label.device) for _ in range(2))
    for index, box in enumerate(scipy.ndimage.find_objects(ids.cpu().numpy()), start=1):
        if not box:  # None for an id that does not occur
            continue
        score, place = _score_in_box((ids[box] == index).float(), box, tuple(ids.shape), shape)
        result[place].masked_fill_(score > best[place], index)
        torch.maximum(best[place], score, out=best[place])
        covered[place] += score
    return result.masked_fill_(best <= 1 - covered, 0)[None]  # on a tie the lower id, background, is taken


def _score_in_box(
    mask: Tensor, box: tuple[slice, ...], old_shape: Shape, shape: Shape
) -> tuple[Tensor, tuple[slice, ...]]:
    """Interpolate a mask that is empty outside of a box; return scores and the box of the new grid that they fill."""
    place = list(box)
    for axis in sorted(range(mask.ndim), key=lambda axis: shape[axis] / old_shape[axis]):  # shrinks before it grows
        if shape[axis] == old_shape[axis]:
            continue
        start, stop = box[axis].start, box[axis].stop
        lower, upper, share = _linear_taps(old_shape[axis], shape[axis])
        touched = torch.nonzero((upper >= start) & (lower < stop))
        place[axis] = slice(int(touched[0]), int(touched[-1]) + 1) if len(touched) else slice(0, 0)
        parts = []
        for tap, weight in ((lower, 1 - share), (upper, share)):
            inside = tap[place[axis]] - start
            known = (inside >= 0) & (inside < stop - start)  # beyond the box the mask is empty
            along = (weight[place[axis]] * known).to(mask.device)
            along = along.view(*(-1 if other == axis else 1 for other in range(mask.ndim)))
            parts.append(mask.index_select(axis, inside.clamp(0, stop - start - 1).to(mask.device)).mul_(along))
        mask = parts[0].add_(parts[1])
    return mask, tuple(place)


@lru_cache(maxsize=64)
def _linear_taps(old: int, new: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each new voxel its two old neighbours and the second one's share, as PyTorch interpolates."""
    place = ((torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5).clamp_(0, old - 1)
    lower = place.long()
    return lower, (lower + 1).clamp_max_(old - 1), (place - lower).float()


def resample_scores(scores: Tensor, shape: Shape) -> Tensor:
    """Resample scores or probabilities linearly.

    Args:
        scores: ``(C, *spatial)``, floating.
        shape: The new spatial shape.

    Returns:
        ``(C, *shape)``; the input itself where the shape is already right.
    """
    if tuple(scores.shape[1:]) == tuple(shape):
        return scores
    return F.interpolate(scores[None], size=tuple(shape), mode=_MODES[len(shape)], align_corners=False)[0]


@lru_cache(maxsize=64)
def _spline_weights(old: int, new: int, order: Literal[1, 3]) -> Tensor:
    """Return the ``(new, old)`` matrix that resamples one axis: what resampling does to each unit vector."""
    if old == 1:
        return torch.ones(new, 1)
    weights = scipy.ndimage.zoom(np.eye(old), (new / old, 1.0), order=order, mode="nearest", grid_mode=True)
    return torch.from_numpy(weights.astype(np.float32))
