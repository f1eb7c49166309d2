"""Dice with cross-entropy for data in which some voxels are to be ignored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import DiceLoss
from monai.networks.utils import one_hot
from torch import Tensor, nn
from torch.nn import functional as F


class DiceEntropyLoss(nn.Module):
    """Soft Dice plus cross-entropy, to which voxels with the ignore label do not contribute.

    Args:
        num_classes: Number of channels of the logits; 1 for a single foreground logit.
        ignore_label: The id of voxels that are ignored.
        regions: For overlapping regions, the ids of each; None if classes are mutually exclusive.
        include_background: Whether class 0 of exclusive classes is included in the Dice.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_label: int,
        regions: Sequence[Sequence[int]] | None = None,
        include_background: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.regions = [[1]] if num_classes == 1 and not regions else regions
        self.dice = DiceLoss(include_background=include_background or self.regions is not None)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of logits ``(B, C, *spatial)`` for ids ``(B, 1, *spatial)``."""
        logits = logits.float()
        valid = labels != self.ignore_label
        ids = torch.where(valid, labels, 0).long()
        count = valid.sum().clamp(min=1)
        if self.regions is None:
            target = one_hot(ids, self.num_classes) * valid
            entropy = F.cross_entropy(logits, ids.squeeze(1), reduction="none")
            entropy = (entropy * valid.squeeze(1)).sum() / count
            probabilities = logits.softmax(1)
        else:
            # Without tensors of ids, whose copies would wait for a GPU.
            masks = [torch.stack([ids == label_id for label_id in region]).any(0) for region in self.regions]
            target = torch.cat(masks, dim=1).float() * valid
            entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
            entropy = (entropy * valid).sum() / (count * self.num_classes)
            probabilities = logits.sigmoid()
        dice: Tensor = self.dice(probabilities * valid, target)
        return entropy + dice
