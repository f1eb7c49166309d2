"""MONAI's MedNeXt: a U-Net of ConvNeXt blocks, which are depthwise convolutions in inverted bottlenecks.

Roy et al., *MedNeXt: transformer-driven scaling of ConvNets for medical image segmentation*, MICCAI 2023,
arXiv:2303.09975.
"""

from __future__ import annotations

from typing import ClassVar

from monai.networks.nets.mednext import create_mednext
from torch import nn
from typing_extensions import override

from candy_monai.errors import SettingsError
from candy_monai.inference.predictor import Predictor
from candy_monai.registry import Bundle
from candy_monai.training.options import SegmentationOptions
from candy_monai_bundles.base import BundleTrainer

__all__ = ["BUNDLE", "MedNeXtPredictor", "MedNeXtTrainer", "build_mednext"]

KERNELS = (3, 5)


def build_mednext(
    *,
    num_dims: int,
    in_channels: int,
    out_channels: int,
    size: str = "S",
    kernel_size: int = 3,
    deep_supervision: bool = False,
) -> nn.Module:
    """Build a MedNeXt with residual connections and group normalisation with one group per channel.

    Args:
        num_dims: 2 or 3 spatial axes.
        in_channels: Number of channels of the image.
        out_channels: Number of logits per voxel.
        size: ``"S"``, ``"B"``, ``"M"`` or ``"L"``, as in the paper.
        kernel_size: Side of the depthwise kernels, 3 or 5.
        deep_supervision: Whether to return the logits of the coarser levels as well in training mode.

    Returns:
        The network: images ``(B, in_channels, *spatial)``, each axis a multiple of 16, to logits
        ``(B, out_channels, *spatial)``.

    Raises:
        SettingsError: If there is no such size or kernel.
    """
    MedNeXtTrainer.check_size(size)
    check_kernel(kernel_size)
    network: nn.Module = create_mednext(
        size,
        spatial_dims=num_dims,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=kernel_size,
        deep_supervision=deep_supervision,
    )
    return network


def check_kernel(kernel_size: int) -> None:
    """Check that the paper has networks with this kernel."""
    if kernel_size not in KERNELS:
        raise SettingsError(f"MedNeXt's kernel_size must be 3 or 5, got {kernel_size!r}")


class MedNeXtTrainer(BundleTrainer):
    """Trains a MedNeXt on pictures or volumes, with AdamW at the paper's learning rate.

    Attributes:
        size: ``"S"``, ``"B"``, ``"M"`` or ``"L"``.
        kernel_size: 3 or 5. The paper trains 5 from the upsampled weights of 3.
    """

    network_name = "MedNeXt"
    network_builder = staticmethod(build_mednext)
    normalizes_each_case = True
    network_options = ("size", "kernel_size")
    sizes: ClassVar = {"S": {}, "B": {}, "M": {}, "L": {}}
    size = "S"
    memory_factors: ClassVar = {"S": 4.1, "B": 4.9, "M": 7.4, "L": 14.0}
    divisor = 16
    supervises_deeply = True
    options = SegmentationOptions(learning_rate=1e-3, weight_decay=1e-2)
    kernel_size: int = 3

    @override
    @classmethod
    def check_network(cls) -> None:
        super().check_network()
        check_kernel(cls.kernel_size)


class MedNeXtPredictor(Predictor):
    """Predicts with a trained MedNeXt, given only its experiment folder."""


BUNDLE = Bundle(name="mednext", build_network=build_mednext, trainer=MedNeXtTrainer, predictor=MedNeXtPredictor)
