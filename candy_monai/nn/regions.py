"""Overlapping regions: unions of label ids with an output channel each, as masks for training and as ids of results."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from candy_monai.aliases import Scalar
from candy_monai.label_ids import holding
from candy_monai.metrics.overlap import is_any_of
from candy_monai.nn.losses import apply_loss


def region_masks(labels: Tensor, regions: Sequence[Sequence[int]], *, ignore_index: int | None = None) -> Tensor:
    """Return a mask for each region: 1 where the label is one of its ids, else 0.

    Args:
        labels: Ids ``(B, 1, *spatial)``.
        regions: The ids of each region.
        ignore_index: Voxels with this id keep it in every mask, so that a loss can ignore them.

    Returns:
        ``(B, regions, *spatial)`` of the labels' type, or int64 if that cannot hold ``ignore_index``.
    """
    plain = labels.as_subclass(Tensor) if ignore_index is None else holding(labels.as_subclass(Tensor), ignore_index)
    masks = torch.cat([is_any_of(plain, ids) for ids in regions], dim=1)
    result = masks.to(plain.dtype)
    return result if ignore_index is None else torch.where(plain == ignore_index, plain, result)


def paint_regions(logits: Tensor, paints: Sequence[int]) -> Tensor:
    """Convert logits to label ids: each region sets its id where its probability exceeds 1/2, later ones override.

    Args:
        logits: ``(B, regions, *spatial)``.
        paints: The id of each region, in the order of painting.

    Returns:
        Ids ``(B, 1, *spatial)``, int16.

    Raises:
        ValueError: If the logits have another number of channels.
    """
    if logits.shape[1] != len(paints):
        raise ValueError(f"expected {len(paints)} regions on axis 1, got logits of shape {tuple(logits.shape)}")
    plain = logits.detach().as_subclass(Tensor)
    painted = torch.zeros_like(plain[:, :1], dtype=torch.int16)
    for scores, paint in zip(torch.split(plain, 1, dim=1), paints, strict=True):
        painted.masked_fill_(scores > 0, paint)
    return painted


class RegionLoss(nn.Module):
    """Apply a criterion for masks to label ids.

    Args:
        criterion: Takes logits and masks ``(B, regions, *spatial)``, such as ``DiceBCELossWithLogits``.
        regions: The ids of each region.
        ignore_index: The id that the criterion ignores; the same as its own.
    """

    def __init__(
        self, criterion: nn.Module, regions: Sequence[Sequence[int]], *, ignore_index: int | None = None
    ) -> None:
        super().__init__()
        self.criterion = criterion
        self._regions = tuple(tuple(ids) for ids in regions)
        self._ignore_index = ignore_index

    @override
    def forward(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Scalar]]:
        """Return the loss and its parts.

        Args:
            logits: ``(B, regions, *spatial)``.
            labels: Ids ``(B, 1, *spatial)``.
        """
        masks = region_masks(labels, self._regions, ignore_index=self._ignore_index)
        loss, parts = apply_loss(self.criterion, logits, masks)
        return loss, dict(parts)
