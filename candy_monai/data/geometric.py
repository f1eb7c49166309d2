"""Crop tensors, and add or remove leading axes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from candy_monai.errors import BadInputError


def crop(x: Tensor, bbox: Sequence[int]) -> Tensor:
    """Return the part of a tensor within a box, as a view.

    Args:
        x: ``(..., *spatial)``, with any number of leading axes.
        bbox: First voxel and end along each spatial axis: ``(a0, a1, b0, b1)`` in 2-D, two numbers more in 3-D.

    Raises:
        BadInputError: If the box does not have 2 or 3 axes, or exceeds the tensor.
    """
    sides = list(zip(bbox[::2], bbox[1::2], strict=False))
    if len(bbox) not in (4, 6) or len(sides) > x.ndim:
        raise BadInputError(f"a box has 4 or 6 numbers, two for each spatial axis, got {tuple(bbox)}")
    sizes = x.shape[x.ndim - len(sides) :]
    if any(not 0 <= first < end <= size for (first, end), size in zip(sides, sizes, strict=True)):
        raise BadInputError(f"the box {tuple(bbox)} is empty or reaches beyond the spatial shape {tuple(sizes)}")
    for axis, (first, end) in enumerate(sides, start=x.ndim - len(sides)):
        x = x.narrow(axis, first, end - first)
    return x


def ensure_num_dimensions(x: Tensor, num_dimensions: int) -> Tensor:
    """Return a tensor with a given number of axes, by adding or removing leading axes of length 1.

    Args:
        x: A tensor of any shape.
        num_dimensions: The number of axes of the result.

    Raises:
        BadInputError: If an axis to remove has more than one entry.
    """
    surplus = x.ndim - num_dimensions
    if any(size != 1 for size in x.shape[: max(0, surplus)]):
        raise BadInputError(
            f"a tensor of shape {tuple(x.shape)} cannot be reduced to {num_dimensions} axes without losing entries; "
            "select an entry of the leading axes first"
        )
    return x.reshape((1,) * max(0, -surplus) + tuple(x.shape[max(0, surplus) :]))
