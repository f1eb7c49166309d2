"""The second network of a cascade, which sees the label map that the first one predicted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from candy_monai.aliases import Shape
from candy_monai.nn.slicewise import build_for_slices


class WithPreviousStage(nn.Module):
    """A network that gets the label ids in the last channel of its input as one channel for each id.

    A store or an image on its way to the network thus holds one number a voxel, whatever the number of classes is.

    Args:
        network: Takes ``(B, C + num_ids, *spatial)``.
        num_ids: The highest id; the ids from 1 to it have a channel each, and the background has none.
    """

    def __init__(self, network: nn.Module, num_ids: int) -> None:
        super().__init__()
        self.network = network
        self.num_ids = num_ids

    @override
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the network's result for ``(B, C + 1, *spatial)``, whose last channel holds label ids."""
        image, ids = x[:, :-1], x[:, -1:]
        every = torch.arange(1, self.num_ids + 1, device=x.device, dtype=x.dtype)
        one_hot = ids == every.view(1, -1, *[1] * (x.ndim - 2))
        return self.network(torch.cat([image, one_hot.to(x.dtype)], dim=1), *args, **kwargs)


def build_for_inputs(
    build: Callable[[Shape], nn.Module], example_shape: Shape, *, slice_axis: int | None, num_previous: int
) -> nn.Module:
    """Build a network for examples ``(C, *spatial)``, which are slices of volumes or end in a channel of label ids.

    ``slice_axis`` is the axis across the slices for a 2-D network, None for others; ``num_previous`` is the highest id
    in the last channel, 0 if it holds none.

    Raises:
        SettingsError: If a network with 3-D convolutions was built for slices.
    """
    if not num_previous:
        return build_for_slices(build, example_shape, slice_axis)
    return WithPreviousStage(build(without_ids(example_shape, num_previous)), num_previous)


def without_ids(shape: Shape, num_previous: int) -> Shape:
    """Return the shape of an example ``(C, *spatial)`` for the network inside `WithPreviousStage`."""
    return (shape[0] - 1 + num_previous, *shape[1:]) if num_previous else shape
