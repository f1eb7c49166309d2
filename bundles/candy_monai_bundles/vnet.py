"""MONAI's V-Net: residual stages with large kernels, designed for volumes; its 2-D form is by MONAI.

Milletari, Navab and Ahmadi, *V-Net: fully convolutional neural networks for volumetric medical image segmentation*, 3DV
2016, arXiv:1606.04797.
"""

from __future__ import annotations

from monai.networks.nets import VNet
from torch import nn
from typing_extensions import override

from candy_monai.data.planning.plan import Plan
from candy_monai.errors import SettingsError
from candy_monai.inference.predictor import Predictor
from candy_monai.registry import Bundle
from candy_monai.training.options import SegmentationOptions
from candy_monai_bundles.base import BundleTrainer

__all__ = ["BUNDLE", "VNetPredictor", "VNetTrainer", "build_vnet"]

FIRST_FILTERS = 16


def build_vnet(*, num_dims: int, in_channels: int, out_channels: int) -> nn.Module:
    """Build a V-Net with batch normalisation and dropout, in its only size.

    Args:
        num_dims: 2 or 3 spatial axes.
        in_channels: Number of channels of the image: 1, 2, 4, 8 or 16, since it is added to the first 16 feature maps.
        out_channels: Number of logits per voxel.

    Returns:
        The network: images ``(B, in_channels, *spatial)``, each axis a multiple of 16, to logits
        ``(B, out_channels, *spatial)``.

    Raises:
        SettingsError: If 16 is not a multiple of the number of channels.
    """
    check_channels(in_channels)
    network: nn.Module = VNet(
        spatial_dims=num_dims, in_channels=in_channels, out_channels=out_channels, dropout_dim=num_dims
    )
    return network


def check_channels(in_channels: int) -> None:
    """Check that the image can be added to the first feature maps."""
    if FIRST_FILTERS % in_channels:
        raise SettingsError(
            f"V-Net adds the image to its first {FIRST_FILTERS} feature maps, so it takes 1, 2, 4, 8 or 16 channels, "
            f"but its input has {in_channels} here: train another bundle, such as --bundle unet"
        )


class VNetTrainer(BundleTrainer):
    """Trains a V-Net on pictures or volumes with 1, 2, 4, 8 or 16 channels."""

    network_name = "V-Net"
    network_builder = staticmethod(build_vnet)
    network_options = ()
    divisor = 16
    normalizes_batches = True
    options = SegmentationOptions(learning_rate=1e-3, weight_decay=1e-5, memory_factor=0.8)

    @override
    @classmethod
    def check_plan(cls, plan: Plan) -> None:
        super().check_plan(plan)
        check_channels(plan.num_inputs)


class VNetPredictor(Predictor):
    """Predicts with a trained V-Net, given only its experiment folder."""


BUNDLE = Bundle(name="vnet", build_network=build_vnet, trainer=VNetTrainer, predictor=VNetPredictor)
