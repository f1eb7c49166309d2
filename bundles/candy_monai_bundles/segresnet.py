"""MONAI's SegResNetDS, SegResNet with deep supervision: the residual encoder-decoder of Auto3DSeg.

Myronenko, *3D MRI brain tumor segmentation using autoencoder regularization*, BrainLes 2018, arXiv:1810.11654. If
voxels are much longer along one axis, the first levels do not halve it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from monai.networks.nets import SegResNetDS
from torch import nn
from typing_extensions import override

from candy_monai.aliases import Shape
from candy_monai.data.planning.plan import Plan
from candy_monai.inference.predictor import Predictor
from candy_monai.registry import Bundle
from candy_monai.training.options import SegmentationOptions
from candy_monai_bundles.base import BundleTrainer

__all__ = ["BUNDLE", "SegResNetPredictor", "SegResNetTrainer", "build_segresnet"]

SIZES: dict[str, dict[str, Any]] = {
    "S": {"init_filters": 16, "blocks_down": (1, 2, 2, 4)},
    "B": {"init_filters": 32, "blocks_down": (1, 2, 2, 4)},
    "L": {"init_filters": 32, "blocks_down": (1, 2, 2, 4, 4)},
}


def build_segresnet(
    *,
    num_dims: int,
    in_channels: int,
    out_channels: int,
    size: str = "B",
    resolution: Sequence[float] | None = None,
    deep_supervision: bool = False,
) -> nn.Module:
    """Build a SegResNetDS with instance normalisation, which does not depend on the size of a batch.

    Args:
        num_dims: 2 or 3 spatial axes.
        in_channels: Number of channels of the image.
        out_channels: Number of logits per voxel.
        size: ``"S"`` and ``"B"`` have 16 and 32 filters and four levels, ``"L"``, as in Auto3DSeg, 32 and five.
        resolution: Length of a voxel along each axis; None if it is the same along all.
        deep_supervision: Whether to return the logits of the coarser levels as well in training mode.

    Returns:
        The network: images ``(B, in_channels, *spatial)`` to logits ``(B, out_channels, *spatial)``.

    Raises:
        SettingsError: If there is no such size.
    """
    SegResNetTrainer.check_size(size)
    network: nn.Module = SegResNetDS(
        spatial_dims=num_dims,
        in_channels=in_channels,
        out_channels=out_channels,
        norm="instance",
        dsdepth=len(SIZES[size]["blocks_down"]) - 1 if deep_supervision else 1,
        resolution=None if resolution is None else tuple(resolution),
        **SIZES[size],
    )
    return network


class SegResNetTrainer(BundleTrainer):
    """Trains a SegResNet on pictures or volumes, with AdamW, a warm-up and a cosine schedule.

    Attributes:
        size: ``"S"``, ``"B"`` or ``"L"``.
        resolution: Length of a voxel along each axis, set by a plan of volumes; None if it is the same along all.
    """

    network_name = "SegResNet"
    network_builder = staticmethod(build_segresnet)
    normalizes_each_case = True
    network_options = ("size", "resolution")
    sizes = SIZES
    size = "B"
    memory_factors: ClassVar = {"S": 0.6, "B": 1.2, "L": 1.3}
    supervises_deeply = True
    warms_up = True
    options = SegmentationOptions(learning_rate=1e-3, weight_decay=1e-5)
    resolution: Sequence[float] | None = None

    @override
    @classmethod
    def divisors(cls, plan: Plan) -> Shape:
        return _shape_factor(cls.size, _resolution_of(plan), plan.network_dims)

    @override
    def use_plan(self, plan: Plan) -> None:
        super().use_plan(plan)
        self.resolution = _resolution_of(plan)

    @override
    def _padding_factors(self) -> Shape:
        return _shape_factor(self.size, self.resolution, self.num_dims)


class SegResNetPredictor(Predictor):
    """Predicts with a trained SegResNet, given only its experiment folder."""


def _resolution_of(plan: Plan) -> tuple[float, ...] | None:
    return plan.spacing_mm if plan.network_dims == 3 else None


def _shape_factor(size: str | None, resolution: Sequence[float] | None, num_dims: int) -> Shape:
    network = build_segresnet(num_dims=num_dims, in_channels=1, out_channels=1, size=size or "B", resolution=resolution)
    return tuple(int(factor) for factor in network.shape_factor())  # type: ignore[operator]


BUNDLE = Bundle(name="segresnet", build_network=build_segresnet, trainer=SegResNetTrainer, predictor=SegResNetPredictor)
