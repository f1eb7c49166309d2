"""Distances between the surfaces of a predicted and a reference class, by MONAI, with the library's policy.

A class in neither has no distance, NaN. One that only one of them contains is infinitely far off, and its surface Dice
is 0: a class that was missed must not make a mean look better.

A voxel of a class is surface where a neighbour across one of its faces is not of the class, and beyond the border of
the image nothing is of any class: an object that touches the border has surface there. Axes of length 1 are no axes
here, so a volume of one slice is measured as the flat picture that it is.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

from torch import Tensor

SURFACE_METRICS = ("hd95", "assd", "surface_dice")
"""95th percentile of the Hausdorff distance and average symmetric surface distance, both in the spacing's unit; and the
share of both surfaces that lies within the tolerance of the other (Nikolov et al., 2018)."""


def surface_metrics(
    prediction: Tensor,
    reference: Tensor,
    names: Sequence[str] = SURFACE_METRICS,
    *,
    spacing_mm: Sequence[float],
    tolerance_mm: float = 1.0,
) -> dict[str, float]:
    """Measure one class of one case.

    Args:
        prediction: Mask ``(*spatial)``.
        reference: Mask of the same shape.
        names: Which of `SURFACE_METRICS`.
        spacing_mm: Distance of voxels along each axis.
        tolerance_mm: How far off a surface may be that still counts for the surface Dice.

    Returns:
        Name to value.
    """
    in_prediction, in_reference = bool(prediction.any()), bool(reference.any())
    if not in_prediction and not in_reference:
        return dict.fromkeys(names, math.nan)
    if not in_prediction or not in_reference:
        return {name: 0.0 if name == "surface_dice" else math.inf for name in names}
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    axes = _axes_of_extent(prediction.shape)
    masks = [mask.reshape([mask.shape[axis] for axis in axes])[None, None].bool() for mask in (prediction, reference)]
    spacing = tuple(spacing_mm[axis] for axis in axes)
    measures: dict[str, Callable[[], Tensor]] = {
        "hd95": lambda: compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=spacing),
        "assd": lambda: compute_average_surface_distance(
            *masks, include_background=True, symmetric=True, spacing=spacing
        ),
        "surface_dice": lambda: compute_surface_dice(*masks, [tolerance_mm], include_background=True, spacing=spacing),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI warns of an argument of its own that it will remove
        return {name: float(measures[name]()) for name in names}


def _axes_of_extent(shape: Sequence[int]) -> list[int]:
    """Return the axes that are longer than 1, and as many others as make two, which MONAI needs at least."""
    by_length = sorted(range(len(shape)), key=lambda axis: shape[axis] == 1)
    longer = sum(length > 1 for length in shape)
    return sorted(by_length[: max(2, longer)])
