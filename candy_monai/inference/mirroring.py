"""Flip test-time augmentation: the mean over all mirror images. Knows no window."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

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

    def averaged(windows: Tensor) -> Tensor:
        total = network(windows).clone()  # a network may return its input, or the same tensor every time
        for dims in flips:
            total += network(windows.flip(dims)).flip(dims)
        return total.div_(len(flips) + 1)

    return averaged
