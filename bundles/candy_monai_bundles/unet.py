"""The U-Net of nnU-Net, as MONAI's DynUNet: plain convolutions, instance normalisation, layout given by the plan.

Isensee, Jaeger, Kohl, Petersen and Maier-Hein, *nnU-Net: a self-configuring method for deep learning-based biomedical
image segmentation*, Nature Methods 18, 2021, arXiv:1809.10486.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from monai.networks import nets
from torch import Tensor, nn
from typing_extensions import override

from candy_monai.aliases import Shape
from candy_monai.data.planning.plan import Plan
from candy_monai.data.planning.topology import filters_of
from candy_monai.errors import SettingsError
from candy_monai.inference.predictor import Predictor
from candy_monai.registry import Bundle
from candy_monai.training.options import SegmentationOptions
from candy_monai_bundles.base import BundleTrainer

__all__ = ["BUNDLE", "UNetPredictor", "UNetTrainer", "build_unet"]

WIDEST = {2: 512, 3: 320}
LEVELS = 5
MIN_LEVELS = 3
SMALLEST_AXIS = 4
"""No axis is halved below this many voxels: instance normalisation needs something to average over."""


class DynUNet(nets.DynUNet):
    """MONAI's DynUNet, which in training mode returns the coarser logits at their own resolution.

    MONAI upsamples them to the full one, so that the loss of each takes as much time and memory as that of the finest.
    Here the labels are downsampled instead, as in nnU-Net. Name, arguments, weights and logits are those of MONAI's.
    """

    exported_as = nets.DynUNet

    @override
    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return the logits; in training mode with deep supervision a list of them, the finest first."""
        logits: Tensor = self.output_block(self.skip_layers(x))
        if self.training and self.deep_supervision:
            outputs: list[Tensor] = [logits] + self.heads  # noqa: RUF005  # TorchScript has no other way to join lists
            return outputs
        return logits


def build_unet(
    *,
    num_dims: int,
    in_channels: int,
    out_channels: int,
    filters: Sequence[int],
    kernel_sizes: Sequence[Sequence[int]],
    strides: Sequence[Sequence[int]],
    deep_supervision: bool = False,
    residual: bool = False,
) -> nn.Module:
    """Build a U-Net with instance normalisation and leaky ReLU.

    Args:
        num_dims: 2 or 3 spatial axes.
        in_channels: Number of channels of the image.
        out_channels: Number of logits per voxel.
        filters: Number of feature maps of each level, the finest first.
        kernel_sizes: Kernel of each level, one number per axis.
        strides: Stride into each level, one number per axis; the first is all ones.
        deep_supervision: Whether to return a list in training mode: the logits, followed by those of the lower levels.
        residual: Whether the encoder's blocks add their input to their output.

    Returns:
        The network: images ``(B, in_channels, *spatial)`` to logits ``(B, out_channels, *spatial)``.

    Raises:
        SettingsError: If there are fewer than three levels.

    Source:
        Isensee et al., nnU-Net, Nature Methods 18, 2021.
    """
    check_levels(filters)
    network: nn.Module = DynUNet(
        spatial_dims=num_dims,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=[tuple(kernel) for kernel in kernel_sizes],
        strides=[tuple(stride) for stride in strides],
        upsample_kernel_size=[tuple(stride) for stride in strides[1:]],
        filters=list(filters),
        norm_name=("instance", {"affine": True}),
        deep_supervision=deep_supervision,
        deep_supr_num=max(1, len(filters) - 2),
        res_block=residual,
    )
    return network


class UNetTrainer(BundleTrainer):
    """Trains a U-Net on pictures or volumes.

    Attributes:
        num_dims: 2 for pictures ``(C, H, W)``, 3 for volumes ``(C, D, H, W)``.
        size: ``"S"``, ``"B"`` or ``"L"`` for 16, 32 or 64 filters at the finest level; None for the plan's.
        filters: Number of feature maps of each level, the finest first; None for 32, 64 ... in up to five levels.
        kernel_sizes: Kernel of each level, one number per axis; None for 3 throughout.
        strides: Stride into each level, one number per axis; None to halve every axis that is large enough.
    """

    network_name = "the U-Net"
    network_builder: ClassVar[Callable[..., nn.Module]] = staticmethod(build_unet)
    sizes: ClassVar = {"S": {"width": 16}, "B": {"width": 32}, "L": {"width": 64}}
    memory_factors: ClassVar = {"S": 0.5, "B": 1.0, "L": 2.0}
    supervises_deeply = True
    options = SegmentationOptions(follows_filters=True)
    fixed_entries: ClassVar[tuple[str, ...]] = ()
    filters: Sequence[int] | None = None
    kernel_sizes: Sequence[Sequence[int]] | None = None
    strides: Sequence[Sequence[int]] | None = None

    @override
    def __init_subclass__(cls, **arguments: object) -> None:
        super().__init_subclass__(**arguments)
        if vars(cls).get("size") is not None:
            cls.options = SegmentationOptions(follows_filters=False)  # so that a budget does not try other widths
            cls.fixed_entries = ("filters",)

    @override
    @classmethod
    def check_plan(cls, plan: Plan) -> None:
        super().check_plan(plan)
        if cls.build_network is BundleTrainer.build_network:  # a subclass's own network may have fewer levels
            check_levels(plan.filters)

    @override
    @classmethod
    def adapt_plan(cls, plan: Plan) -> Plan:
        """Return the plan, which is made for this network, with the filters of the chosen size."""
        cls.check_plan(plan)
        changes: dict[str, Any] = {}
        if cls.size is not None:
            changes["filters"] = cls._widths(len(plan.filters), plan.network_dims)
        if not cls.supervises_deeply and "deep_supervision" not in plan.chosen:
            changes["deep_supervision"] = False
        return dataclasses.replace(plan, **changes) if changes else plan

    @override
    def use_plan(self, plan: Plan) -> None:
        super().use_plan(plan)
        assert self.plan is not None
        topology = self.plan.network_topology
        self.filters, self.kernel_sizes, self.strides = self.plan.filters, topology.kernel_sizes, topology.strides

    @override
    def network_arguments(self, example_shape: Shape) -> dict[str, Any]:
        channels, *size = example_shape
        filters = list(self.filters or self._default_filters())
        strides = self.strides or default_strides(size, len(filters))
        kernel_sizes = self.kernel_sizes or [(3,) * self.num_dims] * len(strides)
        arguments = {
            "num_dims": self.num_dims,
            "in_channels": channels,
            "out_channels": self.num_classes,
            "filters": filters[: len(strides)],
            "kernel_sizes": [list(kernel) for kernel in kernel_sizes[: len(strides)]],
            "strides": [list(stride) for stride in strides],
        }
        return {**arguments, "deep_supervision": self.options.deep_supervision} if self.supervises_deeply else arguments

    @override
    def _padding_factors(self) -> Shape:
        if self.strides is None:
            return (2 ** (len(self.filters or self._default_filters()) - 1),) * self.num_dims
        return tuple(math.prod(axis) for axis in zip(*self.strides, strict=True))

    def _default_filters(self) -> tuple[int, ...]:
        return filters_of(LEVELS, base=self.sizes[self.size or "B"]["width"], limit=WIDEST[self.num_dims])

    @classmethod
    def _widths(cls, levels: int, num_dims: int) -> tuple[int, ...]:
        cls.check_size()
        return filters_of(levels, base=cls.sizes[str(cls.size)]["width"], limit=WIDEST[num_dims])


class UNetPredictor(Predictor):
    """Predicts with a trained U-Net, given only its experiment folder."""


def check_levels(filters: Sequence[int]) -> None:
    """Check that there are enough levels for MONAI's network."""
    if len(filters) < MIN_LEVELS:
        raise SettingsError(
            f"the U-Net needs at least {MIN_LEVELS} levels, got {len(filters)} filters: {list(filters)}"
        )


def default_strides(size: Sequence[int], max_levels: int) -> list[tuple[int, ...]]:
    """Return each level's stride for images of this size: halve every axis that stays large enough.

    Args:
        size: The image's spatial size.
        max_levels: Maximum number of levels; there are at least three, as MONAI's network requires.
    """
    strides = [(1,) * len(size)]
    while len(strides) < max_levels:
        stride = tuple(2 if extent >= 2 * SMALLEST_AXIS else 1 for extent in size)
        if max(stride) == 1 and len(strides) >= MIN_LEVELS:
            break
        strides.append(stride)
        size = [extent // step for extent, step in zip(size, stride, strict=True)]
    return strides


BUNDLE = Bundle(name="unet", build_network=build_unet, trainer=UNetTrainer, predictor=UNetPredictor)
