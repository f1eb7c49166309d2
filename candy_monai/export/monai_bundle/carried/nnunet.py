"""Run images in the windows of nnU-Net."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import scipy.ndimage
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from torch import Tensor
from torch.nn import functional as F

_STEP = 0.5  # of a window
_SIGMA = 0.125
_GREATEST_WEIGHT = 10.0


class NNUNetInferer(Inferer):
    """Runs images in nnU-Net's windows: spaced evenly over the image, blended with its Gaussian weights.

    nnU-Net stores logits in half precision, which decides where two classes are nearly equal; so they are rounded.

    Args:
        roi_size: The window, one number per axis of the network.
        spatial_dim: For a 2-D network and volumes, the axis across the slices.
        rounds_sums: Whether sums of logits are also rounded after each window, as for a single network.
    """

    def __init__(self, roi_size: Sequence[int], spatial_dim: int | None = None, rounds_sums: bool = True) -> None:
        super().__init__()
        self.roi_size = tuple(roi_size)
        self.spatial_dim = spatial_dim
        self.rounds_sums = rounds_sums

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the logits of images ``(B, C, *spatial)``."""
        images = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        if self.spatial_dim is None:
            whole = torch.stack([self._run(image, network) for image in images])
        else:
            axis = 1 + self.spatial_dim
            slices = ([self._run(part, network) for part in image.movedim(axis, 0)] for image in images)
            whole = torch.stack([torch.stack(each, dim=axis) for each in slices])
        return convert_to_dst_type(whole, inputs)[0]

    def _run(self, image: Tensor, network: Callable[..., Any]) -> Tensor:
        size = image.shape[1:]
        missing = [max(side - extent, 0) for extent, side in zip(size, self.roi_size, strict=True)]
        margins = [(each // 2, each - each // 2) for each in missing]
        padded = F.pad(image, [width for margin in reversed(margins) for width in margin])
        weights = gaussian(self.roi_size).to(image.device)
        sums: Tensor | None = None
        total = weights.new_zeros(padded.shape[1:])
        for place in self._places(padded.shape[1:]):
            scores = _weighted(padded[(slice(None), *place)][None], network, weights)
            if sums is None:
                sums = scores.new_zeros((len(scores), *total.shape))
            box = sums[(slice(None), *place)]
            box += scores
            if self.rounds_sums:
                box.copy_(box.half())
            total[place] += weights
        assert sums is not None
        kept = tuple(slice(before, before + extent) for (before, _), extent in zip(margins, size, strict=True))
        return (sums / total.half().float()).half().float()[(slice(None), *kept)]

    def _places(self, size: Sequence[int]) -> Iterator[tuple[slice, ...]]:
        starts = []
        for extent, side in zip(size, self.roi_size, strict=True):
            last, count = extent - side, math.ceil((extent - side) / (side * _STEP)) + 1
            starts.append([round(last / max(count - 1, 1) * index) for index in range(count)])
        for corner in itertools.product(*starts):
            yield tuple(slice(start, start + side) for start, side in zip(corner, self.roi_size, strict=True))


def _weighted(window: Tensor, network: Callable[..., Any], weights: Tensor) -> Tensor:
    """Return the weighted logits of one window; for several networks the mean of the rounded ones of each."""
    members = getattr(network, "networks", None)
    if members is None:
        scores: Tensor = network(window)[0].float()
        return scores * weights
    return torch.stack([(member(window)[0].float() * weights).half().float() for member in members]).mean(0)


@functools.lru_cache(maxsize=4)
def gaussian(window: tuple[int, ...]) -> Tensor:
    """Return nnU-Net's weights of a window, rounded to half precision."""
    along = []
    for side in window:
        impulse = np.zeros(side)
        impulse[side // 2] = 1.0
        along.append(scipy.ndimage.gaussian_filter(impulse, side * _SIGMA, mode="constant"))
    weights = functools.reduce(np.multiply.outer, along)
    half = torch.from_numpy(weights / (weights.max() / _GREATEST_WEIGHT)).half().float()
    smallest = float(half[half > 0].min())
    return torch.where(half == 0, smallest, half)
