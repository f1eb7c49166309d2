"""How a whole image is run through a network: at once where it is small, else in blended windows. Loads nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from monai.inferers import Inferer, SlidingWindowInferer
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

if TYPE_CHECKING:
    from candy_monai.data.planning import Plan

WHOLE_IMAGE_LIMIT = 2.0
"""An image of up to so many patches' voxels is run at once: cheaper than windows, and nearly what was trained on."""


class WholeOrWindowsInferer(Inferer):
    """Runs small images at once and large ones in windows that are blended with MONAI's Gaussian weights.

    An image that is run at once is padded with zeros to a multiple of ``divisor``, as training patches are.

    Args:
        window_shape: The window, one number a spatial axis.
        divisor: What each axis must be a multiple of.
        overlap: Share of a window that its neighbour covers too, 0 to below 1.
        batch_size: Windows in one forward pass.
    """

    def __init__(
        self, window_shape: Sequence[int], *, divisor: Sequence[int], overlap: float = 0.5, batch_size: int = 4
    ) -> None:
        self._window_shape = tuple(window_shape)
        self._divisor = tuple(divisor)
        self._windows = SlidingWindowInferer(
            roi_size=self._window_shape,
            sw_batch_size=batch_size,
            overlap=overlap,
            mode="gaussian",
            cache_roi_weight_map=True,
        )

    @override
    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: object, **kwargs: object) -> Tensor:
        size = tuple(inputs.shape[2:])
        missing = [-extent % divisor for extent, divisor in zip(size, self._divisor, strict=True)]
        num_voxels = math.prod(extent + more for extent, more in zip(size, missing, strict=True))
        if num_voxels > WHOLE_IMAGE_LIMIT * math.prod(self._window_shape):
            result: Tensor = self._windows(inputs, network, *args, **kwargs)
            return result
        at_the_end = [width for more in reversed(missing) for width in (0, more)]
        logits = network(F.pad(inputs, at_the_end), *args, **kwargs)
        for axis, extent in enumerate(size, start=2):
            logits = logits.narrow(axis, 0, extent)
        return logits


def build_inferer(plan: Plan) -> Inferer:
    """Return the inferer that validation and prediction of a planned run share."""
    return WholeOrWindowsInferer(plan.patch_shape, divisor=plan.divisor)
