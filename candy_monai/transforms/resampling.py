"""Resample to a spacing with the same extent: images by clamped cubic splines, labels by majority, scores linearly.

Voxels are boxes: the outer faces of the first and the last one are unchanged, as in nnU-Net and in PyTorch with
``align_corners=False``.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import scipy.ndimage
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, get_track_meta
from monai.data.utils import affine_to_spacing
from monai.transforms import InvertibleTransform, MapTransform, TraceableTransform
from monai.transforms.utils import scale_affine
from monai.utils import TraceKeys, convert_to_tensor, ensure_tuple_rep, look_up_option
from torch import Tensor
from torch.nn import functional as F

Shape = tuple[int, ...]

_CUBIC: Literal[3] = 3
_LINEAR: Literal[1] = 1
LINEAR_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
"""PyTorch's names of linear interpolation, by the number of axes."""
_MODES = ("cubic", "linear", "nearest", "majority")
_ANISOTROPIC = 3.0
_NEAREST_AXIS = "nearest_axis"


def resample_image(
    image: Tensor, shape: Shape, *, anisotropic_axis: int | None = None, separate: bool = False
) -> Tensor:
    """Resample intensities by a cubic spline, linearly across thick slices; the range of each channel is kept.

    A spline is linear in its samples, so that each axis is one matrix product: exact, and much faster than evaluating
    the spline voxel by voxel.

    Args:
        image: ``(C, *spatial)`` float32.
        shape: The new spatial shape.
        anisotropic_axis: The axis across thick slices, where a cubic spline would overshoot between slices.
        separate: Whether thick slices are copied instead, and the range of each slice is kept.

    Returns:
        ``(C, *shape)``; the input itself if the shape is unchanged.
    """
    if tuple(image.shape[1:]) == tuple(shape):
        return image
    copied_axis = anisotropic_axis if separate else None
    result = image
    for axis, size in enumerate(shape):
        if image.shape[axis + 1] != size and axis != copied_axis:
            weights = _spline_weights(image.shape[axis + 1], size, _LINEAR if axis == anisotropic_axis else _CUBIC)
            result = (result.movedim(axis + 1, -1) @ weights.to(image.device).T).movedim(-1, axis + 1)
    together = [axis + 1 for axis in range(len(shape)) if axis != copied_axis]
    result = result.clamp(image.amin(together, keepdim=True), image.amax(together, keepdim=True))
    if copied_axis is not None:
        result = nearest_slices(result, copied_axis + 1, shape[copied_axis])
    return result.contiguous()


def resample_label(label: Tensor, shape: Shape, *, anisotropic_axis: int | None = None) -> Tensor:
    """Resample label ids: each new voxel gets the id that covers most of it, so that no new ids are created.

    Each foreground id is interpolated linearly within its own box; voxels without an id are background. Neither memory
    nor, for ids in small boxes, time grows with the number of ids. Thick slices are copied, not interpolated.

    Args:
        label: ``(1, *spatial)`` integer, 0 or more.
        shape: The new spatial shape.
        anisotropic_axis: The axis across thick slices.

    Returns:
        ``(1, *shape)`` of the same type; the input itself if the shape is unchanged.
    """
    if tuple(label.shape[1:]) == tuple(shape):
        return label
    if anisotropic_axis is not None:
        label = nearest_slices(label, anisotropic_axis + 1, shape[anisotropic_axis])
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
    return result.masked_fill_(best <= 1 - covered, 0)[None]  # in a tie the lower id, background, is used


def resample_scores(scores: Tensor, shape: Shape, *, nearest_axis: int | None = None) -> Tensor:
    """Return scores ``(C, *spatial)`` resampled to another shape, linearly, or copied along ``nearest_axis``.

    The input itself is returned if the shape is unchanged.
    """
    if tuple(scores.shape[1:]) == tuple(shape):
        return scores
    if nearest_axis is not None:
        scores = nearest_slices(scores, nearest_axis + 1, shape[nearest_axis])
    # One channel at a time, since PyTorch would hold all of them twice.
    result = scores.new_empty((len(scores), *shape))
    for target, channel in zip(result, scores, strict=True):
        mode = LINEAR_MODES[len(shape)]
        target[:] = F.interpolate(channel[None, None], size=tuple(shape), mode=mode, align_corners=False)[0, 0]
    return result


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> Shape:
    """Return the shape that covers the same space with another spacing, at least one voxel along each axis.

    A target that is not positive keeps the spacing of its axis, as in MONAI's ``Spacing``.
    """
    return tuple(
        max(1, round(size * old / new)) if new > 0 else size
        for size, old, new in zip(shape, spacing, target, strict=True)
    )


def thick_axis(spacing: Sequence[float], *, ratio: float = _ANISOTROPIC) -> int | None:
    """Return the axis of a volume along which voxels are more than ``ratio`` times as long as along both others."""
    axis = int(np.argmax(spacing))
    return axis if len(spacing) > 2 and spacing[axis] > ratio * sorted(spacing)[-2] else None


def separate_axis(*spacings: Sequence[float], ratio: float = _ANISOTROPIC) -> int | None:
    """Return the axis of a volume across which nnU-Net resamples slices separately; None if there is none.

    It is the unique longest side of the voxels, for the first of the spacings whose longest side is more than ``ratio``
    times the shortest.
    """
    for spacing in spacings:
        if len(spacing) > 2 and max(spacing) > ratio * min(spacing):
            longest = [axis for axis, length in enumerate(spacing) if max(spacing) / length == 1]
            return longest[0] if len(longest) == 1 else None
    return None


def nearest_slices(values: Tensor, dim: int, size: int) -> Tensor:
    """Return values at ``size`` new positions along a dimension, each copied from the nearest slice."""
    old = values.shape[dim]
    return values if old == size else values.index_select(dim, _nearest(old, size).to(values.device))


class ResampleToSpacing(InvertibleTransform):
    """Resample to a spacing, with the extent of the image kept exactly. The inverse restores the shape exactly.

    Compared to MONAI's ``Spacing`` with its best options: the grid starts and ends with the image, while ``Spacing``
    keeps the spacing exact and is up to 0.6 voxels off at the far end; cubic interpolation cannot leave the range of
    its channel; along an axis of thick slices images are interpolated linearly and labels copied; labels are assigned
    by the majority in a voxel, with which nearest neighbour agrees on 92 to 98 % of the foreground; 4 to 8 times
    faster. For data that need no resampling the results are the same.

    Args:
        pixdim: The spacing along each spatial axis; an axis whose entry is not positive keeps its own.
        mode: ``cubic`` or ``linear`` for intensities, ``majority`` or ``nearest`` for label ids.
        anisotropy: An axis has thick slices if its spacing is more than this many times that of both others, in the
            image itself or else in ``pixdim``.
        separate_z: Whether thick slices are resampled as by nnU-Net: an axis has thick slices if its spacing is the
            longest, and more than ``anisotropy`` times the shortest; images are then copied from the nearest slice
            along it, and so are scores in the inverse.

    Raises:
        ValueError: If the mode is unknown, or a spacing is not finite.
    """

    def __init__(
        self,
        pixdim: Sequence[float] | float,
        *,
        mode: str = "cubic",
        anisotropy: float = _ANISOTROPIC,
        separate_z: bool = False,
    ) -> None:
        self.pixdim = (pixdim,) if isinstance(pixdim, int | float) else tuple(pixdim)
        if not all(map(math.isfinite, self.pixdim)):
            raise ValueError(f"pixdim must be finite, got {self.pixdim}")
        self.mode = look_up_option(mode, _MODES)
        self.anisotropy = anisotropy
        self.separate_z = separate_z

    def __call__(self, img: Any, mode: str | None = None) -> Tensor:
        """Return the resampled image, with its affine, and with the inverse if metadata are tracked.

        Args:
            img: ``(C, *spatial)``; without an affine its spacing is 1.
            mode: Replaces the transform's own.

        Raises:
            ValueError: If the mode is unknown, or the number of spatial axes is not that of the spacings.
        """
        mode = look_up_option(mode or self.mode, _MODES)
        img = convert_to_tensor(img, track_meta=get_track_meta())
        values = img.as_tensor() if isinstance(img, MetaTensor) else img
        old = tuple(values.shape[1:])
        target = self.pixdim * len(old) if len(self.pixdim) == 1 else self.pixdim
        if len(target) != len(old):
            raise ValueError(f"pixdim has {len(target)} entries for an image of shape {tuple(values.shape)}")
        spacing = _spacing_of(img, len(old))
        new = resampled_shape(old, spacing, target)
        wanted = [length if length > 0 else kept for length, kept in zip(target, spacing, strict=True)]
        extra = {}
        if self.separate_z:
            thick = separate_axis(spacing, wanted, ratio=self.anisotropy)
            extra[_NEAREST_AXIS] = separate_axis(wanted, spacing, ratio=self.anisotropy)
        else:
            own, other = (thick_axis(lengths, ratio=self.anisotropy) for lengths in (spacing, wanted))
            thick = other if own is None else own
        result = _resampled(values, new, mode, thick, separate=self.separate_z)
        if not isinstance(img, MetaTensor):
            return result
        back = "linear" if mode == "cubic" else mode  # Invertd may replace it by "nearest"
        info = TraceableTransform.track_transform_meta(
            img,
            sp_size=new,
            affine=torch.as_tensor(scale_affine(old, new)),
            extra_info={"src_affine": img.affine.clone(), "mode": back, **extra},
            orig_size=old,
            transform_info=self.get_transform_info(),
        )
        placed: Tensor = MetaTensor(result).copy_meta_from(info)
        return placed

    def inverse(self, data: Tensor) -> Tensor:
        """Return scores or labels on the original grid: scores linearly, labels by ``mode``."""
        info = self.pop_transform(data)
        shape = tuple(int(size) for size in info[TraceKeys.ORIG_SIZE])
        values = data.as_tensor() if isinstance(data, MetaTensor) else data
        mode = info[TraceKeys.EXTRA_INFO]["mode"]
        if mode == "linear" and not values.is_floating_point():
            mode = "majority"
        if mode == "linear":
            result = resample_scores(values, shape, nearest_axis=info[TraceKeys.EXTRA_INFO].get(_NEAREST_AXIS))
        else:
            result = _resampled(values, shape, mode, None)
        placed = MetaTensor(result).copy_meta_from(data)
        placed.affine = info[TraceKeys.EXTRA_INFO]["src_affine"]
        restored: Tensor = placed
        return restored


class ResampleToSpacingd(MapTransform, InvertibleTransform):
    """Dictionary form of `ResampleToSpacing`, whose options it has.

    The mode may be one for each key: ``("cubic", "majority")`` for image and label.
    """

    def __init__(
        self,
        keys: KeysCollection,
        pixdim: Sequence[float] | float,
        *,
        mode: Sequence[str] | str = "cubic",
        anisotropy: float = _ANISOTROPIC,
        separate_z: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.mode = tuple(look_up_option(each, _MODES) for each in ensure_tuple_rep(mode, len(self.keys)))
        self.resampler = ResampleToSpacing(pixdim, anisotropy=anisotropy, separate_z=separate_z)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the items with those of the keys resampled."""
        d = dict(data)
        for key, mode in self.key_iterator(d, self.mode):
            d[key] = self.resampler(d[key], mode)
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the items with those of the keys on the original grid."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.resampler.inverse(d[key])
        return d


def _spacing_of(img: Tensor, num_dims: int) -> tuple[float, ...]:
    if not isinstance(img, MetaTensor):
        return (1.0,) * num_dims
    rank = len(img.affine) - 1  # all rows are used: the plane of a 2-D image may be oblique
    return tuple(float(length) for length in affine_to_spacing(img.affine, r=rank)[: min(num_dims, rank)])


def _resampled(values: Tensor, shape: Shape, mode: str, thick: int | None, *, separate: bool = False) -> Tensor:
    if tuple(values.shape[1:]) == shape:
        return values
    if mode == "majority":
        kind = values.dtype  # for ids stored as floating-point numbers
        ids = values if not values.is_floating_point() else values.round().long()
        return torch.cat([resample_label(channel[None], shape, anisotropic_axis=thick) for channel in ids]).to(kind)
    if mode == "nearest":
        return F.interpolate(values[None].double(), size=shape, mode="nearest-exact")[0].to(values.dtype)
    floating = values.float()
    if mode == "linear":
        return resample_scores(floating, shape)
    return resample_image(floating, shape, anisotropic_axis=thick, separate=separate)


def _score_in_box(
    mask: Tensor, box: tuple[slice, ...], old_shape: Shape, shape: Shape
) -> tuple[Tensor, tuple[slice, ...]]:
    """Interpolate a mask that is empty outside of a box; return scores and the box of the new grid that they cover."""
    place = list(box)
    for axis in sorted(range(mask.ndim), key=lambda axis: shape[axis] / old_shape[axis]):  # shrink before growing
        if shape[axis] == old_shape[axis]:
            continue
        start, stop = box[axis].start, box[axis].stop
        lower, upper, share = linear_taps(old_shape[axis], shape[axis])
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


def resampled_from(image: Tensor) -> tuple[Shape, int | None]:
    """Return the spatial shape of an image before `ResampleToSpacing`, its last step, else its own shape.

    The second result is the axis along which scores are copied in the inverse instead of interpolated.
    """
    steps = image.applied_operations if isinstance(image, MetaTensor) else []
    if not steps or steps[-1][TraceKeys.CLASS_NAME] != ResampleToSpacing.__name__:
        return tuple(int(size) for size in image.shape[1:]), None
    before = tuple(int(size) for size in steps[-1][TraceKeys.ORIG_SIZE])
    return before, steps[-1][TraceKeys.EXTRA_INFO].get(_NEAREST_AXIS)


@lru_cache(maxsize=64)
def linear_taps(old: int, new: int, *, nearest: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each new voxel its two old neighbours and the second one's weight, as PyTorch interpolates.

    With ``nearest`` both neighbours are the nearest voxel.
    """
    if nearest:
        return _nearest(old, new), _nearest(old, new), torch.zeros(new)
    place = ((torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5).clamp_(0, old - 1)
    lower = place.long()
    return lower, (lower + 1).clamp_max_(old - 1), (place - lower).float()


@lru_cache(maxsize=64)
def _nearest(old: int, new: int) -> Tensor:
    return ((torch.arange(new, dtype=torch.float64) + 0.5) * (old / new)).long().clamp_max(old - 1)


@lru_cache(maxsize=64)
def _spline_weights(old: int, new: int, order: Literal[1, 3]) -> Tensor:
    """Return the ``(new, old)`` matrix that resamples one axis, by resampling each unit vector."""
    if old == 1:
        return torch.ones(new, 1)
    weights = scipy.ndimage.zoom(np.eye(old), (new / old, 1.0), order=order, mode="nearest", grid_mode=True)
    return torch.from_numpy(weights.astype(np.float32))
