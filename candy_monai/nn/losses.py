"""Dice loss with cross-entropy, from logits, with reported parts of the loss.

The Dice part is MONAI's, the entropy parts are PyTorch's.

The reported ``soft dice`` follows the library's policy for absent classes: a class that neither the reference nor the
thresholded prediction contains is left out of the mean; it is 1 if there is nothing to measure. The loss itself uses
MONAI's smoothed form for such a class, so that it is comparable with ``monai.losses``.

Invalid labels (fractions, ids without a class) raise an error on the CPU. On a GPU this check would block each training
step, so the loss becomes NaN instead, which ends a run.
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
    """Base class of both criteria: the options, the checks and the Dice part."""

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
            raise SettingsError(
                f"smooth must be positive, otherwise an empty label causes a division by zero; got {smooth}"
            )
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self._weights = lambda_entropy, lambda_soft_dice
        # With one channel there is no background channel to leave out.
        self._first_scored = 0 if include_background or num_classes == 1 else 1
        self._batch_dice = batch_dice
        self._dice_loss = DiceLoss(
            include_background=self._first_scored == 0,
            batch=batch_dice,
            smooth_nr=smooth,
            smooth_dr=smooth,
            reduction="none",
        )

    def _checked(self, logits: Tensor, labels: Tensor, *, masks_allowed: bool) -> tuple[Tensor, Tensor]:
        """Return float32 logits and labels as plain tensors, if their shapes and the labels' values are valid."""
        given = f"got logits {tuple(logits.shape)} and labels {tuple(labels.shape)}"
        if logits.ndim < 3 or logits.shape[1] != self.num_classes:
            raise ValueError(f"expected logits of shape (B, {self.num_classes}, *spatial), {given}")
        channels = (1, self.num_classes) if masks_allowed else (1,)
        expected = [(logits.shape[0], count, *logits.shape[2:]) for count in dict.fromkeys(channels)]
        if tuple(labels.shape) not in expected:
            raise ValueError(f"expected labels of shape {' or '.join(map(str, expected))}, {given}")
        # MONAI's MetaTensor as a plain tensor: its metadata cost time at every operation.
        logits, labels = logits.as_subclass(Tensor).float(), labels.as_subclass(Tensor)
        self._check_ids(labels)
        return logits, labels

    def _check_ids(self, labels: Tensor) -> None:
        """Raise for labels on the CPU that are not ids of the classes, or masks that are not between 0 and 1."""
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
            # Not DiceLoss's own ignore_index, which gives the same for ids: in masks it ignores every voxel without a
            # class, and the reported Dice needs this product, too.
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
        """Return the weighted sum, which is NaN for an invalid label on a GPU, where raising would block the step.

        One-hot encoding aborts the process for an integer that is not a class; others are detected only here.
        """
        loss = self._weights[0] * entropy + self._weights[1] * dice_loss
        are_masks = labels.shape[1] > 1
        if labels.device.type == "cpu" or not (labels.is_floating_point() or are_masks or self.num_classes == 1):
            return loss
        if are_masks:
            fits = (labels >= 0) & (labels <= 1)
        else:
            fits = (labels >= 0) & (labels < max(self.num_classes, 2)) & (labels == labels.round())
        if self.ignore_index is not None:
            fits = fits | (widened(labels) == self.ignore_index)
        return torch.where(fits.all(), loss, torch.nan)


class DiceBCELossWithLogits(_DiceAndEntropy):
    """Soft Dice plus binary cross-entropy, with independent channels.

    For one logit (binary tasks) and for overlapping regions. Computed in float32 for logits of any type. Nothing is
    transferred from a GPU.

    Args:
        num_classes: The number of channels of the logits. 1 is a single foreground logit; 2 or more are one sigmoid
            each, with labels as ids, which are one-hot encoded, or one mask per channel.
        lambda_bce: Weight of the cross-entropy.
        lambda_soft_dice: Weight of the Dice loss.
        smooth: Added to numerator and denominator of the Dice; positive.
        include_background: Whether the Dice, also the reported one, includes channel 0. No effect with one channel.
        batch_dice: Sum over the batch before dividing, instead of computing the Dice of each item.
        ignore_index: Voxels with this label are excluded from all parts. In masks: voxels where any channel has this
            value, which therefore cannot be 0 or 1.

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
            labels: Ids ``(B, 1, *spatial)``, or masks ``(B, C, *spatial)`` of several channels, with values from 0 to
                1; any type.

        Returns:
            The loss to differentiate, and ``soft dice`` and ``bce loss`` as detached tensors of zero dimensions.

        Raises:
            ValueError: If the shapes do not match, or on the CPU a label is not an id of the classes.
        """
        logits, labels = self._checked(logits, labels, masks_allowed=True)
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
    """Soft Dice plus cross-entropy over mutually exclusive classes, including the background.

    Computed in float32 for logits of any type. For many classes it allocates one Boolean one-hot copy of the labels and
    no floating-point copy.

    Args:
        num_classes: The number of channels of the logits, at least 2.
        lambda_ce: Weight of the cross-entropy.
        lambda_soft_dice: Weight of the Dice loss.
        smooth: Added to numerator and denominator of the Dice; positive.
        include_background: Whether the Dice, also the reported one, includes class 0. The entropy always includes it.
        batch_dice: Sum over the batch before dividing, instead of computing the Dice of each item.
        ignore_index: Voxels with this label are excluded from all parts.

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
                "cross-entropy needs at least 2 classes: with num_classes=1 the softmax is always 1 and the loss "
                "always 0; use DiceBCELossWithLogits(num_classes=1) instead"
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
            ValueError: If the shapes do not match, or on the CPU a label is not an id of the classes.
        """
        logits, labels = self._checked(logits, labels, masks_allowed=False)
        ids = labels.long()
        valid = None
        if self.ignore_index is not None:
            valid = ids != self.ignore_index
            ids = torch.where(valid, ids, 0)
        target = one_hot(ids, self.num_classes, dtype=torch.bool)
        entropy = F.cross_entropy(logits, ids.squeeze(1), reduction="mean" if valid is None else "none")
        if valid is not None:
            target.logical_and_(valid)
            # Not cross_entropy's own ignore_index: its mean over no voxels is NaN.
            entropy = (entropy * valid.squeeze(1)).sum() / valid.sum().clamp(min=1)
        # A class that is the argmax in a voxel has at least this probability there.
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
    """Wrap a criterion that reports its parts as a plain loss that returns one tensor, as in MONAI and Lightning.

    Args:
        criterion: Takes ``(logits, labels)``; the result of one that returns a bare tensor is unchanged.
    """
    return _LossOnly(criterion)


# Of these classes themselves: a subclass may change logits and labels before it calls its base.
_OF_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss)
_OF_DIFFERENCES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)


def apply_loss(criterion: nn.Module, logits: Tensor, labels: Tensor) -> tuple[Tensor, Mapping[str, Scalar]]:
    """Compute a loss, including PyTorch's own: these take ids without a channel, or targets of the logits' type.

    Args:
        criterion: Returns ``(loss, parts)``, or the loss alone.
        logits: ``(B, C, *spatial)``.
        labels: ``(B, 1, *spatial)`` ids, or other targets of the criterion.

    Returns:
        The loss as a scalar, and its parts by name.

    Raises:
        ValueError: If the loss is not a scalar, or PyTorch would compute a meaningless one without an error: a cross
            entropy over a single class, or differences of tensors of different shapes.
    """
    name = type(criterion).__name__
    if isinstance(criterion, _OF_CLASSES):
        if type(criterion) in _OF_CLASSES and logits.shape[1] == 1:
            raise ValueError(
                f"{name} needs a channel for each class, also for the background, and the network returns a single "
                "one: use nn.BCEWithLogitsLoss, or 2 classes"
            )
        # Floating-point labels with several channels are probabilities; with one they are ids from MONAI's LoadImage.
        if labels.ndim == logits.ndim and labels.shape[1] == 1:
            labels = labels[:, 0].long()
    elif type(criterion) in _OF_DIFFERENCES and labels.shape != logits.shape:
        raise ValueError(
            f"{name} compares tensors of one shape, and the network's output has {tuple(logits.shape)}, the labels "
            f"{tuple(labels.shape)}: override `backward` and `score_case`, or use a loss that takes ids"
        )
    elif isinstance(criterion, nn.BCEWithLogitsLoss) and not labels.is_floating_point():
        labels = labels.to(logits.dtype)
    loss, parts = split_loss(criterion(logits, labels))
    if loss.numel() != 1:
        raise ValueError(
            f"{name} returned a tensor of shape {tuple(loss.shape)}, expected one number: "
            "reduce it, for example by loss.mean()"
        )
    return loss, parts


def split_loss(result: Tensor | tuple[Tensor, Mapping[str, Scalar]]) -> tuple[Tensor, Mapping[str, Scalar]]:
    """Return the result of a criterion as a pair of the loss and its parts, which are empty for a bare tensor.

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
