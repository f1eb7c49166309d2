"""Flip test-time augmentation: the mean over all mirror images. Knows no window."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from torch import Tensor

from candy_monai.inference.blending import Network


def mirrored(network: Network, axes: Sequence[int]) -> Network:
    """Return a network that averages its scores over all combinations of flips.

    Args:
        network: ``(B, C, *spatial)`` to scores ``(B, K, *spatial)``.
        axes: Spatial axes that may be flipped, counted from 0; ``n`` of them make ``2 ** n`` calls.
    """
    flips = [[axis + 2 for axis in chosen] for count in range(1, len(axes) + 1) for chosen in combinations(axes, count)]
    if not flips:
        return network

    def averaged(windows: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        total = network(windows, *args, **kwargs).clone()  # a network may return its input, or always the same tensor
        for dims in flips:
            total += network(windows.flip(dims), *args, **kwargs).flip(dims)
        return total.div_(len(flips) + 1)

    return averaged
