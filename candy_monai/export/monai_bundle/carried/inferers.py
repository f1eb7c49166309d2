"""Run images as in the validation of the trained experiment: small ones at once, large ones in windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import SliceInferer, SlidingWindowInferer
from monai.utils import convert_to_dst_type
from torch import Tensor
from torch.nn import functional as F

WHOLE_IMAGE_LIMIT = 2.0
"""An image with up to this many times the voxels of a window is run at once."""


def autocast(device: torch.device, amp_dtype: str | None) -> torch.autocast:
    """Return the context in which the network runs; float16, with 5 bits of exponent, is used only on GPUs."""
    enabled = amp_dtype is not None and not (device.type == "cpu" and amp_dtype == "float16")
    dtype = getattr(torch, amp_dtype) if amp_dtype is not None and enabled else None
    return torch.autocast(device.type, dtype=dtype, enabled=enabled)


def rounded_up(size: Sequence[int], divisor: Sequence[int]) -> tuple[int, ...]:
    """Return the smallest multiples of ``divisor`` that are not smaller than ``size``."""
    return tuple(-(-int(extent) // by) * by for extent, by in zip(size, divisor, strict=True))


def scores_of(
    images: Tensor, network: Callable[..., Any], amp_dtype: str | None, multiples: Sequence[int] | None
) -> Tensor:
    """Return the float32 scores of images, which are padded with zeros on both sides to ``multiples`` if given."""
    size = tuple(images.shape[2:])
    wanted = size if multiples is None else rounded_up(size, multiples)
    before = [(padded - extent) // 2 for extent, padded in zip(size, wanted, strict=True)]
    if wanted != size:
        sides = zip(before, size, wanted, strict=True)
        widths = [
            width for first, extent, padded in reversed(list(sides)) for width in (first, padded - extent - first)
        ]
        images = F.pad(images, widths)
    with autocast(images.device, amp_dtype):
        scores: Tensor = network(images)
    inside = (slice(first, first + extent) for first, extent in zip(before, size, strict=True))
    return scores.float()[(slice(None), slice(None), *inside)]


class WholeOrWindowsInferer(SlidingWindowInferer):
    """Runs images of up to twice the window's voxels at once, others in blended windows.

    Args:
        roi_size: The window, one number per spatial axis.
        divisor: The number that each axis of the network's input must be a multiple of. An image that is run at once is
            padded with zeros at its end. None to run every image in windows.
        amp_dtype: The type for computations of the network: ``bfloat16``, ``float16`` on a GPU; None for float32.
        multiples: The numbers to whose multiples each input of the network is padded; None if none needs it.
        kwargs: Further arguments of ``SlidingWindowInferer``.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        divisor: Sequence[int] | None = None,
        amp_dtype: str | None = None,
        multiples: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(roi_size, **kwargs)
        self.divisor = None if divisor is None else tuple(divisor)
        self.amp_dtype, self.multiples = amp_dtype, multiples

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the scores of images ``(B, C, *spatial)``; those of an ensemble are averaged for whole images."""
        if (members := getattr(network, "networks", None)) is not None:
            return network.mean([self(inputs, member, *args, **kwargs) for member in members])  # type: ignore[attr-defined]

        def scores(windows: Tensor) -> Tensor:
            return scores_of(windows, lambda images: network(images, *args, **kwargs), self.amp_dtype, self.multiples)

        size = tuple(inputs.shape[2:])
        padded = size if self.divisor is None else rounded_up(size, self.divisor)
        fits = math.prod(padded) <= WHOLE_IMAGE_LIMIT * math.prod(self.roi_size)
        if self.divisor is None or padded == self.divisor or not fits:
            return super().__call__(inputs, scores)
        images = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        sides = zip(size, padded, strict=True)
        at_the_end = [width for extent, wanted in reversed(list(sides)) for width in (0, wanted - extent)]
        whole = scores(F.pad(images, at_the_end))[(slice(None), slice(None), *map(slice, size))]
        return convert_to_dst_type(whole, inputs)[0]


class SlicesInferer(SliceInferer):
    """Runs the slices of volumes with a 2-D network: padded with zeros and whole, or large ones in blended windows.

    Args:
        roi_size: The window in a slice, two numbers.
        spatial_dim: The axis across the slices.
        divisor: The numbers that the axes of a slice must be a multiple of; None to run every slice in windows.
        amp_dtype: The type for computations of the network: ``bfloat16``, ``float16`` on a GPU; None for float32.
        multiples: The numbers to whose multiples each input of the network is padded; None if none needs it.
        kwargs: Further arguments of ``SlidingWindowInferer``.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        spatial_dim: int,
        divisor: Sequence[int] | None = None,
        amp_dtype: str | None = None,
        multiples: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(spatial_dim, roi_size=roi_size, **kwargs)
        self.window = tuple(roi_size)
        self.divisor = None if divisor is None else tuple(divisor)
        self.amp_dtype, self.multiples = amp_dtype, multiples

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the scores of volumes ``(B, C, *spatial)``; those of an ensemble are averaged for whole volumes."""
        if (members := getattr(network, "networks", None)) is not None:
            return network.mean([self(inputs, member, *args, **kwargs) for member in members])  # type: ignore[attr-defined]

        def scores(slices: Tensor) -> Tensor:
            return scores_of(slices, lambda images: network(images, *args, **kwargs), self.amp_dtype, self.multiples)

        self.orig_roi_size = self.window
        if self.divisor is not None:
            size = [extent for axis, extent in enumerate(inputs.shape[2:]) if axis != self.spatial_dim]
            whole = rounded_up(size, self.divisor)
            if whole != self.divisor and math.prod(whole) <= WHOLE_IMAGE_LIMIT * math.prod(self.window):
                self.orig_roi_size = whole
        return super().__call__(inputs, scores)
