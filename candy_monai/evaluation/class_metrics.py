"""The metrics of one class that an evaluation can measure, each declared once.

Imports nothing heavy: the command line's ``--help`` lists them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ClassMetric:
    """A metric of one class in one case.

    Attributes:
        summary_name: Its name in nnU-Net's summary.
        from_counts: Computes it from the numbers of voxels of the class in both maps, in the prediction and in the
            reference; NaN where it is not defined. None for a metric of surfaces, which ``surface_metrics`` computes.
        lower_is_better: Whether the best value is the lowest, as of a distance.
    """

    summary_name: str
    from_counts: Callable[[int, int, int], float] | None = None
    lower_is_better: bool = False


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


CLASS_METRICS = {
    "dice": ClassMetric(
        summary_name="Dice",
        from_counts=lambda common, predicted, referenced: _ratio(2 * common, predicted + referenced),
    ),
    "iou": ClassMetric(
        summary_name="IoU",
        from_counts=lambda common, predicted, referenced: _ratio(common, predicted + referenced - common),
    ),
    "hd95": ClassMetric(summary_name="HD95", lower_is_better=True),
    "assd": ClassMetric(summary_name="ASSD", lower_is_better=True),
    "surface_dice": ClassMetric(summary_name="SurfaceDice"),
}
"""Name to metric, in the order of tables."""
