"""The trainer of the U-Net."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from candy_monai.aliases import Shape
from candy_monai.data.planning.plan import Plan
from candy_monai.errors import BadInputError
from candy_monai.nn.padding import Pad2d, Pad3d
from candy_monai.training.options import SegmentationOptions
from candy_monai.training.segmentation import SegmentationTrainer
from candy_monai_bundles.unet.network import DEFAULT_FILTERS, build_unet, check_levels, default_strides


class UNetTrainer(SegmentationTrainer):
    """Trains a U-Net on pictures or volumes.

    Attributes:
        num_dims: 2 for pictures ``(C, H, W)``, 3 for volumes ``(C, D, H, W)``.
        filters: Feature maps of each level, the finest first; None for 32, 64 ... in up to five levels.
        kernel_sizes: Kernel of each level, one number an axis; None for 3 throughout.
        strides: Stride into each level, one number an axis; None to halve every axis that is large enough.
    """

    options = SegmentationOptions(follows_filters=True)
    num_dims: int = 2
    filters: Sequence[int] | None = None
    kernel_sizes: Sequence[Sequence[int]] | None = None
    strides: Sequence[Sequence[int]] | None = None

    @classmethod
    @override
    def check_plan(cls, plan: Plan) -> None:
        super().check_plan(plan)
        if cls.build_network is UNetTrainer.build_network:  # a subclass's own network may have fewer levels
            check_levels(plan.filters)

    @override
    def use_plan(self, plan: Plan) -> None:
        super().use_plan(plan)
        topology = plan.network_topology
        self.num_dims, self.filters = plan.network_dims, plan.filters
        self.kernel_sizes, self.strides = topology.kernel_sizes, topology.strides

    @override
    def build_padding_module(self) -> nn.Module | None:
        factor = self._padding_factor()
        return Pad2d(factor) if self.num_dims == 2 else Pad3d(factor)

    @override
    def network_arguments(self, example_shape: Shape) -> dict[str, Any]:
        channels, *size = example_shape
        filters = list(self.filters or DEFAULT_FILTERS[self.num_dims])
        strides = self.strides or default_strides(size, len(filters))
        kernel_sizes = self.kernel_sizes or [(3,) * self.num_dims] * len(strides)
        return {
            "num_dims": self.num_dims,
            "in_channels": channels,
            "out_channels": self.num_classes,
            "filters": filters[: len(strides)],
            "kernel_sizes": [list(kernel) for kernel in kernel_sizes[: len(strides)]],
            "strides": [list(stride) for stride in strides],
            "deep_supervision": self.options.deep_supervision,
        }

    @override
    def build_network(self, example_shape: Shape) -> nn.Module:
        return build_unet(**self.network_arguments(example_shape))

    @override
    def check_sample(self, image: Tensor, label: Tensor) -> None:
        super().check_sample(image, label)
        if self.num_dims not in (2, 3):
            raise BadInputError(f"num_dims must be 2 or 3, got {self.num_dims}")
        if image.ndim != self.num_dims + 1:
            raise BadInputError(
                f"the first training image has the shape {tuple(image.shape)}: that is {image.ndim - 1} spatial axes, "
                f"but num_dims is {self.num_dims}: set trainer.num_dims = {image.ndim - 1}"
            )

    def _padding_factor(self) -> tuple[int, ...]:
        if self.strides is None:
            return (2 ** (len(self.filters or DEFAULT_FILTERS[self.num_dims]) - 1),) * self.num_dims
        return tuple(math.prod(axis) for axis in zip(*self.strides, strict=True))
