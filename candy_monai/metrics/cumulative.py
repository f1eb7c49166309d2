"""Dice and IoU as a metric of MONAI: accumulated over batches and processes, and averaged at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from monai.metrics import CumulativeIterationMetric
from torch import Tensor
from typing_extensions import override

from candy_monai.errors import BadInputError, SettingsError
from candy_monai.metrics.overlap import count_overlap

Reduction = Literal["mean", "mean_batch", "mean_channel", "none"]

_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda scores: scores.nanmean(1).nanmean(),
    "mean_batch": lambda scores: scores.nanmean(0),
    "mean_channel": lambda scores: scores.nanmean(1),
    "none": lambda scores: scores,
}


class OverlapMetric(CumulativeIterationMetric):
    """Accumulate the Dice or IoU of each class and case, as MONAI's ``DiceMetric`` does, with nnU-Net's absent classes.

    A class in neither prediction nor reference of a case has no score and is left out of every mean; a class in only
    one of them scores 0. (``DiceMetric`` leaves out classes absent from the reference, whatever was predicted.)

    Args:
        num_classes: The number with background; 1 for a binary task, ids 0 and 1.
        measure: ``"dice"`` or ``"iou"``.
        include_background: Whether class 0 is scored.
        ignore_index: Voxels with this id in the reference are ignored.
        reduction: The axes that `aggregate` averages over, as in MONAI: ``"mean"`` over the classes of each case and
            then the cases, ``"mean_batch"`` over the cases, ``"mean_channel"`` over the classes, or ``"none"``.

    Raises:
        SettingsError: If an argument is invalid.

    Example:
        >>> metric = OverlapMetric(num_classes=3)
        >>> by_class = metric(torch.ones(2, 1, 4, 4), torch.ones(2, 1, 4, 4))
        >>> metric.aggregate()
        tensor(1.)
    """

    def __init__(
        self,
        num_classes: int,
        *,
        measure: Literal["dice", "iou"] = "dice",
        include_background: bool = False,
        ignore_index: int | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise SettingsError(f"num_classes must be at least 1, got {num_classes}")
        if measure not in ("dice", "iou"):
            raise SettingsError(f"measure must be 'dice' or 'iou', got {measure!r}")
        self.num_classes = num_classes
        self.measure = measure
        self.include_background = include_background
        self.ignore_index = ignore_index
        self.reduction = _known_reduction(reduction)

    @override
    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **_: object) -> Tensor:
        """Return the scores ``(B, classes)`` of a batch.

        Both are ids ``(B, 1, *spatial)``, or logits, probabilities or one-hot encoded ``(B, num_classes, *spatial)``.
        """
        if y is None:
            raise ValueError("the reference (y) is missing: call the metric with a prediction and a reference")
        counts = count_overlap(
            self._ids(y_pred, "prediction"),
            self._ids(y, "reference"),
            self.num_classes,
            include_background=self.include_background,
            ignore_index=self.ignore_index,
            batched=True,
        )
        return counts.dice if self.measure == "dice" else counts.iou

    @override
    def aggregate(self, reduction: Reduction | None = None) -> Tensor:
        """Return the mean over all values since the last `reset`; NaN where there is nothing to measure.

        Args:
            reduction: Replaces the reduction of the metric.

        Raises:
            ValueError: If there are no values.
        """
        scores = self.get_buffer()
        if not isinstance(scores, Tensor):
            raise ValueError("nothing to aggregate: call the metric on predictions and references first")
        return _REDUCTIONS[_known_reduction(reduction or self.reduction)](scores)

    def _ids(self, given: Tensor, name: str) -> Tensor:
        plain = given.as_subclass(Tensor)
        if plain.shape[1] == 1:
            return plain
        if plain.shape[1] != self.num_classes:
            raise ValueError(
                f"expected a {name} with 1 channel of label ids or with {self.num_classes} channels, got shape "
                f"{tuple(plain.shape)}"
            )
        if plain.is_floating_point() and bool(plain.isnan().any()):  # it would be the greatest value
            raise BadInputError(f"the {name} contains NaN, which belongs to no class")
        return plain.argmax(1, keepdim=True)


def _known_reduction(reduction: Reduction) -> Reduction:
    if reduction not in _REDUCTIONS:
        raise SettingsError(f"reduction must be one of {', '.join(_REDUCTIONS)}, got {reduction!r}")
    return reduction
