"""Dice and IoU of label ids, from voxel counts.

Invalid label ids (probabilities, ids from ``num_classes`` on) are refused: ignoring them would give a wrong but
plausible number. On a GPU this check transfers four numbers to the CPU; ``check_ids=False`` avoids this. The policy for
absent classes is in the package's docstring.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from candy_monai.errors import BadInputError
from candy_monai.label_ids import AnyTensor, highest_id, tensor_of, widened

_IGNORED = 2
_COUNTED_AT_ONCE = 2**23  # limits the 64-bit copies of the ids to about 64 MB each


@dataclass(frozen=True, kw_only=True)
class OverlapCounts:
    """Voxels of each class, int64, ``(classes,)`` for one case and ``(B, classes)`` for a batch.

    ``common`` are those in both prediction and reference.
    """

    common: Tensor
    predicted: Tensor
    referenced: Tensor

    @property
    def dice(self) -> Tensor:
        """The Dice of each class, float32; NaN if the class is in neither."""
        return 2 * self.common / (self.predicted + self.referenced)

    @property
    def iou(self) -> Tensor:
        """The intersection over union of each class, float32; NaN if the class is in neither."""
        return self.common / (self.predicted + self.referenced - self.common)


class Counting(TypedDict, total=False):
    """The options of `dice_per_class` for classes, voxels and cases, for functions that pass them on."""

    include_background: bool
    ignore_index: int | None
    batched: bool | None
    check_ids: bool


def dice_per_class(
    prediction: AnyTensor,
    reference: AnyTensor,
    num_classes: int,
    *,
    include_background: bool = False,
    ignore_index: int | None = None,
    batched: bool | None = None,
    check_ids: bool = True,
) -> Tensor:
    """Compute the Dice of each class and case.

    Args:
        prediction: Ids ``(1, *spatial)`` of one case or ``(B, 1, *spatial)`` of several; tensors or NumPy arrays
            of any number type.
        reference: Ids of the same shape.
        num_classes: The number with background; 1 means a binary task, ids 0 and 1.
        include_background: Whether class 0 is among the results.
        ignore_index: Voxels with this id in the reference are ignored.
        batched: Whether the first axis is cases. By default four axes are a batch of 2-D cases if the second has length
            1, else one 3-D case; set this for volumes that may be one slice thick.
        check_ids: Whether to check the values. Otherwise nothing is transferred from the device, and values that are
            not ids of the classes match nothing.

    Returns:
        ``(classes,)`` for one case, ``(B, classes)`` for a batch, float32; NaN if the class is in neither.

    Raises:
        ValueError: If the shapes differ or are not those of label ids, or a value is not an id of the classes.
    """
    return count_overlap(
        prediction,
        reference,
        num_classes,
        include_background=include_background,
        ignore_index=ignore_index,
        batched=batched,
        check_ids=check_ids,
    ).dice


def dice_per_region(
    prediction: AnyTensor,
    reference: AnyTensor,
    regions: Sequence[Sequence[int]],
    *,
    ignore_index: int | None = None,
    batched: bool | None = None,
    check_ids: bool = True,
) -> Tensor:
    """Compute the Dice of regions, each the union of some ids; they may overlap.

    The other arguments and errors are those of `dice_per_class`.

    Args:
        prediction: Ids ``(1, *spatial)`` of one case or ``(B, 1, *spatial)`` of several; tensors or NumPy arrays
            of any number type.
        reference: Ids of the same shape.
        regions: The ids of each region.
        ignore_index: Voxels with this id in the reference are ignored.
        batched: Whether the first axis is cases.
        check_ids: Whether to check the values.

    Returns:
        ``(regions,)`` for one case, ``(B, regions)`` for a batch, float32; NaN if the region is in neither.
    """
    prediction, reference = tensor_of(prediction, what="prediction"), tensor_of(reference, what="reference")
    if check_ids:
        _refuse_other_ids(prediction, reference, None, ignore_index)
    scores = []
    for ids in regions:
        masks = [is_any_of(labels.detach(), ids).to(torch.uint8) for labels in (prediction, reference)]
        if ignore_index is not None:
            masks[1].masked_fill_(widened(reference.detach()) == ignore_index, _IGNORED)
        ignored = None if ignore_index is None else _IGNORED
        dice = dice_per_class(masks[0], masks[1], 2, ignore_index=ignored, batched=batched, check_ids=False)
        scores.append(dice[..., 0])
    return torch.stack(scores, dim=-1)


def iou_per_class(prediction: AnyTensor, reference: AnyTensor, num_classes: int, **options: Unpack[Counting]) -> Tensor:
    """Compute the intersection over union of each class and case.

    Arguments (including ``include_background``, ``ignore_index``, ``batched`` and ``check_ids``), the shape of the
    result and errors are those of `dice_per_class`.
    """
    return count_overlap(prediction, reference, num_classes, **options).iou


def mean_dice(prediction: AnyTensor, reference: AnyTensor, num_classes: int, **options: Unpack[Counting]) -> Tensor:
    """Compute the mean Dice of each case over the classes that it or its reference contains.

    Arguments (including ``include_background``, ``ignore_index``, ``batched`` and ``check_ids``) and errors are those
    of `dice_per_class`.

    Returns:
        A scalar for one case, ``(B,)`` for a batch; NaN where there is nothing to measure.
    """
    return count_overlap(prediction, reference, num_classes, **options).dice.nanmean(-1)


def labels_from_logits(logits: AnyTensor, *, num_classes: int, channel_dim: int = 1) -> Tensor:
    """Convert logits to label ids: the largest channel, or for a single one whether it is above 0 (probability 1/2).

    Args:
        logits: ``(B, C, *spatial)``, a tensor or a NumPy array; with ``channel_dim=0`` a single case ``(C, *spatial)``.
        num_classes: The number of channels of the logits.
        channel_dim: The axis of the channels.

    Returns:
        Ids of the same shape with one channel: uint8, or int64 for more than 256 classes.

    Raises:
        ValueError: If the logits have another number of channels.
    """
    plain = tensor_of(logits, what="prediction").detach()
    if plain.shape[channel_dim] != num_classes:
        raise ValueError(
            f"expected {num_classes} channels on axis {channel_dim} of the logits, got shape {tuple(plain.shape)}"
        )
    ids = plain > 0 if num_classes == 1 else plain.argmax(channel_dim, keepdim=True)
    return ids.to(torch.uint8 if num_classes <= 256 else torch.int64)


def look_like_probabilities(logits: Tensor) -> bool:
    """Return whether values vary between 0 and 1 only, as after a sigmoid or softmax; on a GPU this synchronises."""
    if not logits.numel():
        return False
    low, high = torch.stack(torch.aminmax(logits.detach().as_subclass(Tensor).float())).tolist()
    return bool(0 <= low < high <= 1)


def count_overlap(
    prediction: AnyTensor,
    reference: AnyTensor,
    num_classes: int,
    *,
    include_background: bool = False,
    ignore_index: int | None = None,
    batched: bool | None = None,
    check_ids: bool = True,
) -> OverlapCounts:
    """Count the voxels of each class and case; arguments and errors are those of `dice_per_class`."""
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    prediction, reference = tensor_of(prediction, what="prediction"), tensor_of(reference, what="reference")
    if prediction.shape != reference.shape:
        raise ValueError(
            f"prediction and reference differ in shape: {tuple(prediction.shape)} and {tuple(reference.shape)}"
        )
    several = is_batch(reference) if batched is None else batched
    classes = max(num_classes, 2)
    if check_ids:
        _refuse_other_ids(prediction, reference, classes, ignore_index)
    cases = [ids.detach().reshape(len(ids) if several else 1, -1) for ids in (prediction, reference)]
    totals = torch.zeros(3, len(cases[0]), classes + 1, dtype=torch.int64, device=reference.device)
    step = max(1, _COUNTED_AT_ONCE // max(1, len(cases[0])))
    one = torch.ones((), dtype=torch.int64, device=reference.device)
    for predicted, referenced in zip(*(torch.split(ids, step, dim=1) for ids in cases), strict=True):
        valid = None if ignore_index is None else widened(referenced) != ignore_index
        first, second = (_bins(ids, classes, valid) for ids in (predicted, referenced))
        both = torch.where(first == second, first, classes)
        # Not bincount, which on CUDA transfers the largest id. Sums of integers do not depend on the order.
        for total, bins in zip(totals, (both, first, second), strict=True):
            total.scatter_add_(1, bins, one.expand_as(bins))
    scored = totals[..., 0 if include_background else 1 : classes]
    common, in_prediction, in_reference = scored if several else scored[:, 0]
    return OverlapCounts(common=common, predicted=in_prediction, referenced=in_reference)


def _refuse_other_ids(prediction: Tensor, reference: Tensor, num_classes: int | None, ignore_index: int | None) -> None:
    """Raise if values are not label ids, or, if the number of classes is given, not ids of the classes."""
    for what, labels in (("prediction", prediction), ("reference", reference)):
        highest = highest_id(labels, what=f"the {what}", ignore_index=ignore_index)
        if num_classes is not None and highest >= num_classes:
            raise BadInputError(
                f"the {what} holds the label id {highest}, but with num_classes={num_classes} the ids are 0 to "
                f"{num_classes - 1}: give num_classes={highest + 1}, or map the ids"
            )


def is_any_of(labels: Tensor, ids: Sequence[int]) -> Tensor:
    """Return the mask of labels of any shape that are one of some ids, as a plain Boolean tensor.

    Unlike ``torch.isin`` with a tensor of ids it copies nothing to the device, so that no training step waits for it.
    """
    plain = labels.as_subclass(Tensor)
    if not plain.is_floating_point() and plain.dtype != torch.bool:
        held = torch.iinfo(plain.dtype)
        ids = [label_id for label_id in ids if held.min <= label_id <= held.max]  # PyTorch would wrap around other ids
    nowhere = torch.zeros_like(plain, dtype=torch.bool)
    return functools.reduce(torch.Tensor.logical_or_, (torch.eq(plain, label_id) for label_id in ids), nowhere)


def _bins(ids: Tensor, classes: int, valid: Tensor | None) -> Tensor:
    """Return the ids as bins; invalid voxels and ids that are not classes go into an extra bin, which is never read."""
    ids = ids.long()
    counted = (ids >= 0) & (ids < classes)
    return torch.where(counted if valid is None else counted & valid, ids, classes)


def is_batch(ids: Tensor) -> bool:
    """Return whether a tensor contains several cases, ``(B, 1, *spatial)``, or one, ``(1, *spatial)``; else raise."""
    shape = tuple(ids.shape)
    if len(shape) in (4, 5) and shape[1] == 1:
        return True
    if len(shape) in (3, 4) and shape[0] == 1:
        return False
    raise ValueError(
        f"expected label ids (1, *spatial) or (B, 1, *spatial) with 2 or 3 spatial axes, got shape {shape}"
    )
