"""A 2-D network for volumes, applied slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from candy_monai.aliases import Shape
from candy_monai.errors import SettingsError
from candy_monai.nn.padding import Pad2d, Pad3d

SLICES_AT_ONCE = 16
"""Without gradients a volume's slices are run in groups of this size, to limit the memory of activations."""


class Slicewise(nn.Module):
    """A 2-D network that is applied to each slice of a volume independently.

    A training step uses slices of many cases where a 3-D network would use a few blocks, and a 2-D convolution costs
    less than a 3-D one with a flat kernel (on a CPU half as much in float32, a third in bfloat16).

    Args:
        network: Takes ``(B, C, H, W)``; returns a tensor whose last axes are ``H, W``, or a list, tuple or dictionary
            of such tensors. A loss among them is averaged over groups of slices; None is kept.
        axis: The spatial axis across the slices, 0 to 2.
    """

    def __init__(self, network: nn.Module, axis: int) -> None:
        super().__init__()
        self.network = network
        self.axis = axis

    @override
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the network's results for the slices of ``(B, C, *spatial)``, as volumes."""
        volumes = x.movedim(2 + self.axis, 1)
        slices = volumes.flatten(0, 1)
        groups = (slices,) if torch.is_grad_enabled() else torch.split(slices, SLICES_AT_ONCE)
        return self._as_volumes([self.network(group, *args, **kwargs) for group in groups], volumes.shape[:2])

    def _as_volumes(self, groups: Sequence[Any], counts: tuple[int, ...]) -> Any:
        """Return the results for groups of slices, as volumes."""
        first = groups[0]
        if isinstance(first, Tensor) and first.ndim == 0:
            return torch.stack(tuple(groups)).mean()
        if isinstance(first, Tensor):
            outputs = first if len(groups) == 1 else torch.cat(tuple(groups))
            stacked = outputs.reshape(*counts, *outputs.shape[1:])
            return stacked.movedim(1, stacked.ndim - 3 + self.axis)
        if isinstance(first, dict):
            return {key: self._as_volumes([group[key] for group in groups], counts) for key in first}
        if not isinstance(first, list | tuple):
            return first
        parts = [self._as_volumes(values, counts) for values in zip(*groups, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)


def build_for_slices(build: Callable[[Shape], nn.Module], example_shape: Shape, axis: int | None) -> nn.Module:
    """Build a network for examples ``(C, *spatial)``; with an axis, a 2-D network applied to slices across it.

    Raises:
        SettingsError: If a network with 3-D convolutions was built for slices.
    """
    network = build(without_axis(example_shape, axis))
    if axis is None:
        return network
    if any(isinstance(layer, nn.Conv3d | nn.ConvTranspose3d) for layer in network.modules()):
        raise SettingsError(
            "build_network returned a network with 3-D convolutions, but its input is slices (C, H, W) of volumes: "
            "build a 2-D network for example_shape, or train on volumes (--configuration 3d, or slice_axis = None)"
        )
    return Slicewise(network, axis)


def without_axis(shape: Shape, axis: int | None) -> Shape:
    """Return a shape ``(C, *spatial)`` without the spatial axis across slices, if there is one."""
    return (shape[0], *sides_of_slices(shape[1:], axis))


def sides_of_slices(sides: Sequence[int], axis: int | None) -> Shape:
    """Return numbers for the axes of a volume without that across slices, if there is one."""
    return tuple(sides) if axis is None else (*sides[:axis], *sides[axis + 1 :])


def sides_of_volume(sides: Sequence[int], axis: int | None) -> Shape:
    """Return numbers for the axes of slices with a 1 for the axis across them, if there is one."""
    return tuple(sides) if axis is None else (*sides[:axis], 1, *sides[axis:])


def padding_of_slices(padding: nn.Module | None, axis: int | None) -> nn.Module | None:
    """Return a module that pads volumes as a 2-D network's `Pad2d` pads slices across an axis; others unchanged."""
    if axis is None or not isinstance(padding, Pad2d):
        return padding
    return Pad3d(sides_of_volume(padding.min_factor, axis), value=padding.value, mode=padding.mode)
