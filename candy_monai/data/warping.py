"""Sample a turned, scaled or deformed patch from a box of a case. Draws nothing at random."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from candy_monai.aliases import Shape
from candy_monai.data.resampling import resample_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

Interpolation = Literal["bilinear", "nearest"]


def source_box(
    matrix: NDArray[np.float64],
    centre: NDArray[np.float64],
    shape: Shape,
    *,
    coarse_axis: int | None,
    displacement: Tensor | None = None,
) -> tuple[NDArray[np.int64], Shape]:
    """Return start and shape of the box of a case from which a warped patch is sampled.

    Args:
        matrix: From ``Augmentation.draw_matrix``.
        centre: Where the patch's centre lies in the case, in voxels.
        shape: The patch's shape.
        coarse_axis: The axis along which the box is exactly the patch.
        displacement: From ``Augmentation.draw_displacement``.
    """
    reach = np.abs(matrix) @ ((np.array(shape) - 1) / 2)
    if displacement is not None:
        reach = reach + displacement.abs().flatten(1).amax(1).numpy()
    start = np.floor(centre - reach).astype(np.int64)
    stop = np.ceil(centre + reach).astype(np.int64) + 1
    if coarse_axis is not None:
        start[coarse_axis] = round(float(centre[coarse_axis]) - (shape[coarse_axis] - 1) / 2)
        stop[coarse_axis] = start[coarse_axis] + shape[coarse_axis]
    return start, tuple(int(size) for size in stop - start)


def sampling_grid(matrix: NDArray[np.float64], centre: list[float], box: Shape, shape: Shape) -> Tensor:
    """Return PyTorch's sampling grid ``(1, *shape, num_dims)``, whose coordinates run from -1 to 1 and x first."""
    count = len(shape)
    grid = torch.empty(*shape, count)
    for axis in range(count):
        scale = 2 / max(box[axis] - 1, 1)
        position = torch.full((1,) * count, scale * centre[axis] - 1)
        for other, size in enumerate(shape):
            steps = (torch.arange(size) - (size - 1) / 2) * (scale * float(matrix[axis, other]))
            position = position + steps.view(*(-1 if direction == other else 1 for direction in range(count)))
        grid[..., count - 1 - axis] = position
    return grid[None]


def displace(grid: Tensor, displacement: Tensor, box: Shape) -> None:
    """Move a sampling grid, which is changed, by a displacement that is smooth between its points."""
    offsets = resample_image(displacement, tuple(grid.shape[1:-1]))
    for axis, size in enumerate(box):
        grid[0, ..., len(box) - 1 - axis] += offsets[axis] * (2 / max(size - 1, 1))


def sampled(values: Tensor, grid: Tensor, mode: Interpolation) -> Tensor:
    """Return ``(C, *spatial)`` values at a grid's positions; what lies outside repeats the border."""
    found = F.grid_sample(values[None].float(), grid, mode=mode, padding_mode="border", align_corners=True)
    return found[0].to(values.dtype)


def sampled_by_slice(values: Tensor, grid: Tensor, mode: Interpolation, axis: int) -> Tensor:
    """Sample every slice across a spatial axis by the same grid of the two others."""
    slices = values.movedim(axis + 1, 1)
    found = sampled(slices.flatten(0, 1), grid, mode)
    return found.view(*slices.shape[:2], *found.shape[1:]).movedim(1, axis + 1).contiguous()
