"""UNet++, as MONAI's BasicUNetPlusPlus: nested skip connections, with outputs at full resolution from each depth.

Zhou, Siddiquee, Tajbakhsh and Liang, *UNet++: a nested U-Net architecture for medical image segmentation*, DLMIA 2018,
arXiv:1807.10165.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from candy_monai.inference.predictor import Predictor
from candy_monai.registry import Bundle
from candy_monai.training.options import SegmentationOptions
from candy_monai_bundles.base import BundleTrainer
from candy_monai_bundles.networks.unetpp import DeepestFirst

__all__ = ["BUNDLE", "UNetPlusPlusPredictor", "UNetPlusPlusTrainer", "build_unetpp"]

SIZES: dict[str, dict[str, Any]] = {
    "S": {"features": (16, 16, 32, 64, 128, 16)},
    "B": {"features": (32, 32, 64, 128, 256, 32)},
    "L": {"features": (64, 64, 128, 256, 512, 64)},
}


def build_unetpp(
    *, num_dims: int, in_channels: int, out_channels: int, size: str = "B", deep_supervision: bool = False
) -> nn.Module:
    """Build a UNet++ of five levels with instance normalisation.

    Args:
        num_dims: 2 or 3 spatial axes.
        in_channels: Number of channels of the image.
        out_channels: Number of logits per voxel.
        size: ``"S"``, ``"B"`` or ``"L"`` for 16, 32 (MONAI's default) or 64 features at the finest level.
        deep_supervision: Whether to return the logits of the shallower nodes as well in training mode.

    Returns:
        The network: images ``(B, in_channels, *spatial)``, each axis a multiple of 16, to logits
        ``(B, out_channels, *spatial)``.

    Raises:
        SettingsError: If there is no such size.
    """
    UNetPlusPlusTrainer.check_size(size)
    return DeepestFirst(
        spatial_dims=num_dims,
        in_channels=in_channels,
        out_channels=out_channels,
        deep_supervision=deep_supervision,
        **SIZES[size],
    )


class UNetPlusPlusTrainer(BundleTrainer):
    """Trains a UNet++ on pictures or volumes.

    Attributes:
        size: ``"S"``, ``"B"`` or ``"L"``.
    """

    network_name = "UNet++"
    network_builder = staticmethod(build_unetpp)
    normalizes_each_case = True
    sizes = SIZES
    size = "B"
    memory_factors: ClassVar = {"S": 1.6, "B": 3.1, "L": 6.2}
    divisor = 16
    supervises_deeply = True
    options = SegmentationOptions(learning_rate=3e-3)


class UNetPlusPlusPredictor(Predictor):
    """Predicts with a trained UNet++, given only its experiment folder."""


BUNDLE = Bundle(
    name="unetpp",
    build_network=build_unetpp,
    trainer=UNetPlusPlusTrainer,
    predictor=UNetPlusPlusPredictor,
    networks=(DeepestFirst,),
)
