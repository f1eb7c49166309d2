"""Dice with cross-entropy, from logits, with the parts of the loss reported beside it.

The Dice part is MONAI's own, the entropy parts are PyTorch's.

The reported ``soft dice`` follows the library's policy for absent classes: a class that neither the reference nor the
thresholded prediction contains is left out of the mean; where that leaves nothing to measure it is 1. The loss itself
keeps MONAI's smoothed form for such a class, so that it stays comparable with ``monai.losses``.

Labels that are none (fractions, ids without a class) are refused on the CPU. On a GPU a training step would have to
wait for the answer, so there the loss becomes NaN, which ends a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from monai.losses import DiceLoss
from monai.networks.utils import one_hot
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from candy_monai.errors import BadInputError, SettingsError
from candy_monai.label_ids import highest_id, widened

if TYPE_CHECKING:
    from candy_monai.aliases import Scalar


class _DiceAndEntropy(nn.Module):
    """What both criteria share: the options, the checks and the Dice part."""

    def __init__(
        self,
        num_classes: int,
        lambda_entropy: float,
        lambda_soft_dice: float,
        smooth: float,
        include_background: bool,
        batch_dice: bool,
        ignore_index: int | None,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise SettingsError(f"num_classes must be at least 1, got {num_classes}")
        for name, weight in (("entropy", lambda_entropy), ("soft Dice", lambda_soft_dice)):
            if not (math.isfinite(weight) and weight >= 0):
                raise SettingsError(f"the weight of the {name} part must be finite and not negative, got {weight}")
        if not smooth > 0:
            raise SettingsError(f"smooth must be positive, or an empty label divides by zero; got {smooth}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self._weights = lambda_entropy, lambda_soft_dice
        # With one channel there is no background channel that could be left out.
        self._first_scored = 0 if include_background or num_classes == 1 else 1
        self._batch_dice = batch_dice
        self._dice_loss = DiceLoss(
            include_background=self._first_scored == 0,
            batch=batch_dice,
            smooth_nr=smooth,
            smooth_dr=smooth,
            reduction="none",
        )

    def _check_shapes(self, logits: Tensor, labels: Tensor, *, masks_allowed: bool) -> None:
        given = f"got logits {tuple(logits.shape)} and labels {tuple(labels.shape)}"
        if logits.ndim < 3 or logits.shape[1] != self.num_classes:
            raise ValueError(f"expected logits of shape (B, {self.num_classes}, *spatial), {given}")
        channels = (1, self.num_classes) if masks_allowed else (1,)
        expected = [(logits.shape[0], count, *logits.shape[2:]) for count in dict.fromkeys(channels)]
        if tuple(labels.shape) not in expected:
            raise ValueError(f"expected labels of shape {' or '.join(map(str, expected))}, {given}")

    def _check_ids(self, labels: Tensor) -> None:
        """Refuse labels on the CPU that are no ids of the classes, or as masks not between 0 and 1."""
        if labels.device.type != "cpu" or not labels.numel():
            return
        if labels.shape[1] > 1:
            masks = widened(labels)
            masks = masks if self.ignore_index is None else masks.masked_fill(masks == self.ignore_index, 0)
            low, high = masks.aminmax()
            if not (low >= 0 and high <= 1):
                raise BadInputError(
                    f"the masks hold values from {low.item():.4g} to {high.item():.4g}, expected 0 to 1"
                )
            return
        highest = highest_id(labels, what="the label", ignore_index=self.ignore_index)
        classes = max(self.num_classes, 2)
        if highest >= classes:
            raise BadInputError(
                f"the label holds the id {highest}, but with num_classes={self.num_classes} the ids are 0 to "
                f"{classes - 1}: set num_classes to {highest + 1}, or map the ids"
            )

    def _dice_parts(
        self, probabilities: Tensor, target: Tensor, valid: Tensor | None, *, threshold: float
    ) -> tuple[Tensor, Tensor]:
        """Return the Dice loss and the detached Dice to report; ``target`` is already empty outside ``valid``."""
        if valid is not None:
            # Not DiceLoss's own ignore_index, which gives the same for ids: in masks it takes every voxel of no class
            # for an ignored one, and the reported Dice needs this product, too.
            probabilities = probabilities * valid
        losses = self._dice_loss(probabilities, target).flatten(1)  # (B or 1, scored classes)
        spatial = list(range(2, target.ndim))
        found = probabilities.detach().amax(spatial) > threshold
        present = (found | (target.amax(spatial) > 0))[:, self._first_scored :]
        if self._batch_dice:
            present = present.any(0, keepdim=True)
        dice = torch.where(present, 1 - losses.detach(), 0).sum()
        count = present.sum()
        return losses.mean(), torch.where(count > 0, dice / count.clamp(min=1), 1.0)

    def _combined(self, entropy: Tensor, dice_loss: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted sum, which on a GPU is NaN where a label is none: to raise would make the step wait.

        One-hot encoding ends the process at an integer that is no class; nothing else notices the others.
        """
        loss = self._weights[0] * entropy + self._weights[1] * dice_loss
        if labels.device.type == "cpu" or not (labels.is_floating_point() or self.num_classes == 1):
            return loss
        if labels.shape[1] > 1:
            fits = (labels >= 0) & (labels <= 1)
        else:
            fits = (labels >= 0) & (labels < max(self.num_classes, 2)) & (labels == labels.round())
        if self.ignore_index is not None:
            fits = fits | (widened(labels) == self.ignore_index)
        return torch.where(fits.all(), loss, torch.nan)


class DiceBCELossWithLogits(_DiceAndEntropy):
    """Soft Dice plus binary cross-entropy, every channel a yes-or-no question of its own.

    For one logit (binary tasks) and for overlapping regions. Computed in float32 whatever the type of the logits.
    Nothing is read back from a GPU.

    Args:
        num_classes: Channels of the logits. 1 is a single foreground logit; 2 or more are one sigmoid each, the labels
            either ids, which are then one-hot encoded, or one mask a channel.
        lambda_bce: Weight of the cross-entropy.
        lambda_soft_dice: Weight of the Dice loss.
        smooth: Added to numerator and denominator of the Dice; positive.
        include_background: Whether channel 0 counts in the Dice, the reported one too. Without effect on one channel.
        batch_dice: Sum over the batch before dividing, instead of a Dice for each item.
        ignore_index: Voxels with this label contribute to no part. In masks: voxels where any channel holds this value,
            which therefore cannot be 0 or 1 there.

    Raises:
        SettingsError: If an option is out of range.

    Example:
        >>> criterion = DiceBCELossWithLogits(num_classes=1)
        >>> loss, parts = criterion(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
        >>> sorted(parts)
        ['bce loss', 'soft dice']
    """

    def __init__(
        self,
        num_classes: int = 1,
        *,
        lambda_bce: float = 1.0,
        lambda_soft_dice: float = 1.0,
        smooth: float = 1e-5,
        include_background: bool = True,
        batch_dice: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(
            num_classes, lambda_bce, lambda_soft_dice, smooth, include_background, batch_dice, ignore_index
        )

    @override
    def forward(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts.

        Args:
            logits: ``(B, C, *spatial)``, any floating type.
            labels: Ids ``(B, 1, *spatial)``, or masks ``(B, C, *spatial)`` of several channels, whose values may be
                anything from 0 to 1; any type.

        Returns:
            The loss to differentiate, and ``soft dice`` and ``bce loss`` as detached tensors of zero dimensions.

        Raises:
            ValueError: If the shapes do not fit, or on the CPU a label is no id of the classes.
        """
        self._check_shapes(logits, labels, masks_allowed=True)
        logits, labels = _plain(logits).float(), _plain(labels)
        self._check_ids(labels)
        valid = None
        if self.ignore_index is not None:
            labels = widened(labels)
            valid = (labels != self.ignore_index).all(1, keepdim=True)
            labels = torch.where(valid, labels, 0)
        if labels.shape[1] == self.num_classes:
            target = labels.float()
        else:
            target = one_hot(labels, self.num_classes)
            if valid is not None:
                target.mul_(valid)
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="mean" if valid is None else "none")
        if valid is not None:
            entropy = (entropy * valid).sum() / (valid.sum() * self.num_classes).clamp(min=1)
        dice_loss, dice = self._dice_parts(logits.sigmoid(), target, valid, threshold=0.5)
        return self._combined(entropy, dice_loss, labels), {"soft dice": dice, "bce loss": entropy.detach()}


class DiceCELossWithLogits(_DiceAndEntropy):
    """Soft Dice plus cross-entropy over mutually exclusive classes, the background among them.

    Computed in float32 whatever the type of the logits. For many classes it holds one Boolean one-hot copy of the
    labels and no floating one.

    Args:
        num_classes: Channels of the logits, at least 2.
        lambda_ce: Weight of the cross-entropy.
        lambda_soft_dice: Weight of the Dice loss.
        smooth: Added to numerator and denominator of the Dice; positive.
        include_background: Whether class 0 counts in the Dice, the reported one too. It always counts in the entropy.
        batch_dice: Sum over the batch before dividing, instead of a Dice for each item.
        ignore_index: Voxels with this label contribute to no part.

    Raises:
        SettingsError: If an option is out of range, or ``num_classes`` is 1.

    Example:
        >>> criterion = DiceCELossWithLogits(num_classes=3)
        >>> loss, parts = criterion(torch.zeros(1, 3, 4, 4), torch.ones(1, 1, 4, 4))
        >>> sorted(parts)
        ['ce loss', 'soft dice']
    """

    def __init__(
        self,
        num_classes: int,
        *,
        lambda_ce: float = 1.0,
        lambda_soft_dice: float = 1.0,
        smooth: float = 1e-5,
        include_background: bool = True,
        batch_dice: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        if num_classes == 1:
            raise SettingsError(
                "num_classes=1 leaves cross-entropy nothing to decide: a softmax over one channel is always 1 and its "
                "loss always 0; use DiceBCELossWithLogits(num_classes=1) instead"
            )
        super().__init__(num_classes, lambda_ce, lambda_soft_dice, smooth, include_background, batch_dice, ignore_index)

    @override
    def forward(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts.

        Args:
            logits: ``(B, C, *spatial)``, any floating type.
            labels: Ids ``(B, 1, *spatial)``; any type.

        Returns:
            The loss to differentiate, and ``soft dice`` and ``ce loss`` as detached tensors of zero dimensions.

        Raises:
            ValueError: If the shapes do not fit, or on the CPU a label is no id of the classes.
        """
        self._check_shapes(logits, labels, masks_allowed=False)
        logits, labels = _plain(logits).float(), _plain(labels)
        self._check_ids(labels)
        ids = labels.long()
        valid = None
        if self.ignore_index is not None:
            valid = ids != self.ignore_index
            ids = torch.where(valid, ids, 0)
        target = one_hot(ids, self.num_classes, dtype=torch.bool)
        entropy = F.cross_entropy(logits, ids.squeeze(1), reduction="mean" if valid is None else "none")
        if valid is not None:
            target.logical_and_(valid)
            # Not cross_entropy's own ignore_index: its mean over no voxel at all is NaN.
            entropy = (entropy * valid.squeeze(1)).sum() / valid.sum().clamp(min=1)
        # A class that is the argmax somewhere has at least this probability there.
        threshold = 1 / self.num_classes
        dice_loss, dice = self._dice_parts(logits.softmax(1), target, valid, threshold=threshold)
        return self._combined(entropy, dice_loss, labels), {"soft dice": dice, "ce loss": entropy.detach()}


class _LossOnly(nn.Module):
    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion

    @override
    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return apply_loss(self.criterion, logits, labels)[0]


def as_loss(criterion: nn.Module) -> nn.Module:
    """Wrap a criterion that reports its parts as a plain loss: one tensor out, as MONAI and Lightning expect.

    Args:
        criterion: Takes ``(logits, labels)``; one that already returns a bare tensor is passed through.
    """
    return _LossOnly(criterion)


def apply_loss(criterion: nn.Module, logits: Tensor, labels: Tensor) -> tuple[Tensor, Mapping[str, Scalar]]:
    """Compute a loss, one of PyTorch's own too: these take ids without a channel, or targets of the logits' type.

    Args:
        criterion: Returns ``(loss, parts)``, or the loss alone.
        logits: ``(B, C, *spatial)``.
        labels: ``(B, 1, *spatial)`` ids, or what else the criterion compares logits with.

    Returns:
        The loss, one number, and its parts by name.

    Raises:
        ValueError: If the loss is not one number.
    """
    if isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss):
        # Floating labels of several channels are probabilities; of one they are ids, as MONAI's LoadImage gives them.
        is_soft = labels.is_floating_point() and logits.shape[1] == 1
        if labels.ndim == logits.ndim and labels.shape[1] == 1 and not is_soft:
            labels = labels[:, 0].long()
    elif isinstance(criterion, nn.BCEWithLogitsLoss) and not labels.is_floating_point():
        labels = labels.to(logits.dtype)
    loss, parts = split_loss(criterion(logits, labels))
    if loss.numel() != 1:
        raise ValueError(
            f"{type(criterion).__name__} returned a tensor of shape {tuple(loss.shape)}, expected one number: "
            "reduce it, for example by loss.mean()"
        )
    return loss, parts


def split_loss(result: Tensor | tuple[Tensor, Mapping[str, Scalar]]) -> tuple[Tensor, Mapping[str, Scalar]]:
    """Return what a criterion returned as a pair of the loss and its parts, which a bare tensor lacks.

    Raises:
        TypeError: If it is neither a tensor nor such a pair.
    """
    received: Any = result
    if isinstance(received, Tensor):
        return received, {}
    if isinstance(received, (tuple, list)) and len(received) == 2:
        loss, parts = received
        if isinstance(loss, Tensor) and isinstance(parts, Mapping):
            return loss, parts
    raise TypeError(
        f"a criterion must return a tensor, or a tensor and a mapping of its parts; got {type(result).__name__}"
    )


def _plain(tensor: Tensor) -> Tensor:
    """Strip MONAI's MetaTensor (or any subclass) off: its bookkeeping costs time at every operation."""
    return tensor.as_subclass(Tensor)
