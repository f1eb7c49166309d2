"""Distances between the surfaces of a predicted and a reference class, with the policy for absent classes.

A class in neither has no distance, NaN. For a class in only one of them the distance is infinite, and the surface Dice
is 0, so that a missed class does not improve a mean.

A voxel of a class is on the surface if a face neighbour is not of the class. Outside the image there is no class: an
object that touches the border has surface there. Axes of length 1 are ignored, so that a volume of one slice is
measured as a 2-D picture.

All metrics are computed from the same distances, by MONAI's ``get_surface_distance``; the values are those of MONAI's
``compute_hausdorff_distance``, ``compute_average_surface_distance`` and ``compute_surface_dice``, each of which
computes the distances again. MONAI's cropping and erosion take more time than the distances, so both are done here,
also on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from candy_monai.boxes import bounding_box
from candy_monai.errors import BadInputError
from candy_monai.label_ids import AnyTensor, holds_whole_numbers, ids_in, tensor_of

SURFACE_METRICS = ("hd95", "hd100", "assd", "masd", "surface_dice")
"""In the spacing's unit: the larger of the two directed 95th percentiles of the surface distances, and their maximum
(the Hausdorff distance); the mean of all distances of both surfaces, and the mean of both surfaces' means. And the
share of both surfaces that is within the tolerance of the other (Nikolov et al., 2018)."""

_SLACK = 1 + 1e-6
"""MONAI's distances are float32: 0.3 mm is 0.30000001, and still within a tolerance of 0.3 mm."""

_Mask = npt.NDArray[np.bool_]
_Floats = npt.NDArray[np.float64]
_Weighted = tuple[_Floats, _Floats]
"""Distances, and the area of each surface element."""


def surface_metrics(
    prediction: AnyTensor,
    reference: AnyTensor,
    names: Sequence[str] = SURFACE_METRICS,
    *,
    spacing_mm: Sequence[float],
    tolerance_mm: float = 1.0,
    subvoxels: bool = False,
) -> dict[str, float]:
    """Compute the surface metrics of one class of one case.

    Args:
        prediction: Mask ``(*spatial)``, a tensor or a NumPy array.
        reference: Mask of the same shape.
        names: Which of `SURFACE_METRICS`.
        spacing_mm: Distance of voxels along each axis.
        tolerance_mm: The largest distance of a surface that is accepted by the surface Dice.
        subvoxels: Whether a surface consists of elements between voxels, weighted by their areas, as in DeepMind's
            ``surface-distance``, instead of the outermost voxels.

    Returns:
        Name to value.

    Raises:
        BadInputError: If the masks differ in shape or are not binary, or an option is out of range.
    """
    prediction, reference = checked_masks(prediction, reference, spacing_mm)
    if unknown := [name for name in names if name not in SURFACE_METRICS]:
        raise BadInputError(f"unknown surface metric {unknown[0]!r}; expected any of {', '.join(SURFACE_METRICS)}")
    if not 0 <= tolerance_mm < math.inf:
        raise BadInputError(f"tolerance_mm must be 0 or more, got {tolerance_mm}")
    in_prediction, in_reference = bool(prediction.any()), bool(reference.any())
    if not in_prediction and not in_reference:
        return dict.fromkeys(names, math.nan)
    if not in_prediction or not in_reference:
        return {name: 0.0 if name == "surface_dice" else math.inf for name in names}
    axes = _axes_of_extent(prediction.shape)
    one, other = (
        mask.reshape([mask.shape[axis] for axis in axes]).bool().cpu().numpy() for mask in (prediction, reference)
    )
    measure = _subvoxel_distances if subvoxels else _distances
    (there, areas), (back, areas_back) = measure(one, other, [spacing_mm[axis] for axis in axes])
    total, total_back = areas.sum(), areas_back.sum()
    mean, mean_back = (there * areas).sum() / total, (back * areas_back).sum() / total_back
    limit = tolerance_mm * _SLACK
    percentile = _weighted_percentile if subvoxels else _percentile
    measures: dict[str, Callable[[], float]] = {
        "hd95": lambda: max(percentile(there, areas, 95), percentile(back, areas_back, 95)),
        "hd100": lambda: max(there.max(), back.max()),
        "assd": lambda: (mean * total + mean_back * total_back) / (total + total_back),
        "masd": lambda: (mean + mean_back) / 2,
        "surface_dice": lambda: (areas[there <= limit].sum() + areas_back[back <= limit].sum()) / (total + total_back),
    }
    return {name: float(measures[name]()) for name in names}


def checked_masks(
    prediction: AnyTensor, reference: AnyTensor, spacing_mm: Sequence[float] | None
) -> tuple[Tensor, Tensor]:
    """Return two tensors or arrays, of any number type, as plain tensors.

    Raises:
        BadInputError: If they are not masks on one grid with this spacing, or None for no spacing.
    """
    prediction, reference = tensor_of(prediction, what="prediction"), tensor_of(reference, what="reference")
    shapes = tuple(prediction.shape), tuple(reference.shape)
    if shapes[0] != shapes[1]:
        raise BadInputError(f"prediction and reference differ in shape: {shapes[0]} and {shapes[1]}")
    for what, mask in (("prediction", prediction), ("reference", reference)):
        if not holds_whole_numbers(mask):
            raise BadInputError(
                f"the {what} holds fractions, expected a mask: threshold probabilities, for example at 0.5"
            )
        if mask.dtype != torch.bool and len(ids := [each for each in ids_in(mask) if each]) > 1:
            raise BadInputError(
                f"the {what} holds {len(ids)} ids, such as {ids[0]} and {ids[1]}, expected the mask of one class: "
                f"{what} == {ids[0]}"
            )
    if spacing_mm is not None and not (len(spacing_mm) == len(shapes[0]) and all(0 < s < math.inf for s in spacing_mm)):
        raise BadInputError(
            f"spacing_mm is {tuple(spacing_mm)} for masks of shape {shapes[0]}, expected a positive number for each "
            "axis"
        )
    return prediction, reference


def _distances(prediction: _Mask, reference: _Mask, spacing: Sequence[float]) -> tuple[_Weighted, _Weighted]:
    """Return each prediction surface voxel's distance to the reference's surface, and vice versa."""
    box = bounding_box(prediction | reference)
    assert box is not None
    return _both_ways(_surface(prediction[box]), _surface(reference[box]), spacing)


def _subvoxel_distances(prediction: _Mask, reference: _Mask, spacing: Sequence[float]) -> tuple[_Weighted, _Weighted]:
    """Return the same distances for the elements of both surfaces, with their areas."""
    from monai.metrics import utils

    box = bounding_box(prediction | reference)
    assert box is not None
    masks = (torch.from_numpy(mask[box].copy()) for mask in (prediction, reference))
    one, other, *areas = (np.asarray(found) for found in utils.get_mask_edges(*masks, spacing=tuple(spacing)))
    there, back = _both_ways(one > 0, other > 0, spacing)
    return (there[0], areas[0][one > 0].astype(np.float64)), (back[0], areas[1][other > 0].astype(np.float64))


def _both_ways(one: _Mask, other: _Mask, spacing: Sequence[float]) -> tuple[_Weighted, _Weighted]:
    from monai.metrics.utils import get_surface_distance

    there, back = (
        np.asarray(get_surface_distance(*pair, spacing=spacing), dtype=np.float64)
        for pair in ((one, other), (other, one))
    )
    return (there, np.ones_like(there)), (back, np.ones_like(back))


def _percentile(distances: _Floats, _: _Floats, percent: float) -> float:
    return float(np.percentile(distances, percent))


def _weighted_percentile(distances: _Floats, areas: _Floats, percent: float) -> float:
    """Return the distance within which this share of the area lies, as DeepMind's ``compute_robust_hausdorff``."""
    order = np.argsort(distances)
    shares = np.cumsum(areas[order]) / areas.sum()
    return float(distances[order][min(int(np.searchsorted(shares, percent / 100)), len(order) - 1)])


def _surface(mask: _Mask) -> _Mask:
    """Return the voxels of a mask with a face neighbour outside the mask or outside the image."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        inner_along, along = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        inner_along[:-1] &= along[1:]
        inner_along[1:] &= along[:-1]
        inner_along[[0, -1]] = False
    return mask & ~inner


def _axes_of_extent(shape: Sequence[int]) -> list[int]:
    """Return the axes longer than 1, and others if these are fewer than two, the minimum for a picture."""
    by_length = sorted(range(len(shape)), key=lambda axis: shape[axis] == 1)
    longer = sum(length > 1 for length in shape)
    return sorted(by_length[: max(2, longer)])
