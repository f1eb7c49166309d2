"""How a whole image is run through a network: at once, in blended windows, or whichever fits. Loads nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from monai.inferers import Inferer
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from candy_monai.errors import SettingsError
from candy_monai.inference.windows import WindowBlender, WindowGrid, batches_of_windows, check_window

if TYPE_CHECKING:
    from candy_monai.data.planning import Plan

WHOLE_IMAGE_LIMIT = 2.0
"""An image of up to so many patches' voxels is run at once: cheaper than windows, and nearly what was trained on."""


class WindowInferer(Inferer):
    """Runs images in overlapping windows that are blended with MONAI's Gaussian weights.

    Usable wherever MONAI takes an inferer. The network maps ``(B, C, *window)`` to a tensor of the same spatial size.

    Args:
        window_shape: The window, one number a spatial axis; smaller images are padded with zeros to it.
        overlap: Share of a window that its neighbour covers too, 0 to below 1.
        batch_size: Windows in one forward pass at most.

    Raises:
        SettingsError: If an argument is out of range.
    """

    def __init__(self, window_shape: Sequence[int], *, overlap: float = 0.5, batch_size: int = 4) -> None:
        super().__init__()
        check_window(window_shape, overlap=overlap, batch_size=batch_size)
        self.window_shape = tuple(window_shape)
        self.overlap = overlap
        self.batch_size = batch_size

    @override
    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: object, **kwargs: object) -> Tensor:
        grid = WindowGrid(tuple(inputs.shape[2:]), self.window_shape, self.overlap)
        blender, padded = WindowBlender(grid, batch_size=len(inputs)), grid.padded(inputs)
        for numbers in batches_of_windows(len(inputs) * len(grid), self.batch_size):
            blender.add(network(grid.cut(padded, numbers), *args, **kwargs), numbers)
        return blender.result()


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
        super().__init__()
        self._divisor = tuple(divisor)
        self._windows = WindowInferer(window_shape, overlap=overlap, batch_size=batch_size)

    @override
    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: object, **kwargs: object) -> Tensor:
        size = tuple(inputs.shape[2:])
        missing = [-extent % divisor for extent, divisor in zip(size, self._divisor, strict=True)]
        num_voxels = math.prod(extent + more for extent, more in zip(size, missing, strict=True))
        if num_voxels > WHOLE_IMAGE_LIMIT * math.prod(self._windows.window_shape):
            return self._windows(inputs, network, *args, **kwargs)
        at_the_end = [width for more in reversed(missing) for width in (0, more)]
        logits = network(F.pad(inputs, at_the_end), *args, **kwargs)
        for axis, extent in enumerate(size, start=2):
            logits = logits.narrow(axis, 0, extent)
        return logits


def build_inferer(plan: Plan) -> Inferer:
    """Return the inferer that validation and prediction of a planned run share."""
    return WholeOrWindowsInferer(plan.patch_shape, divisor=plan.divisor)


def inferer_to_dict(inferer: WindowInferer) -> dict[str, object]:
    """Describe an inferer in plain values, for ``experiment.json``."""
    return {
        "kind": "windows",
        "window_shape": list(inferer.window_shape),
        "overlap": inferer.overlap,
        "batch_size": inferer.batch_size,
    }


def inferer_from_dict(description: Mapping[str, object]) -> WindowInferer:
    """Build what `inferer_to_dict` described.

    Raises:
        SettingsError: If the description is none of ours.
    """
    shape, overlap = description.get("window_shape"), description.get("overlap")
    batch_size = description.get("batch_size")
    if not (isinstance(shape, list) and isinstance(overlap, int | float) and isinstance(batch_size, int)):
        raise SettingsError(f"this inferer cannot be built from its description: {dict(description)}")
    return WindowInferer([int(side) for side in shape], overlap=float(overlap), batch_size=batch_size)
