"""MONAI's Attention U-Net: gates weight the skip connections; layout given by the plan.

Oktay et al., *Attention U-Net: learning where to look for the pancreas*, MIDL 2018, arXiv:1804.03999.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from monai.networks.nets import AttentionUnet
from torch import nn
from typing_extensions import override

from candy_monai.aliases import Shape
from candy_monai.inference.predictor import Predictor
from candy_monai.registry import Bundle
from candy_monai.training.options import SegmentationOptions
from candy_monai_bundles.unet import UNetTrainer

__all__ = ["BUNDLE", "AttentionUNetPredictor", "AttentionUNetTrainer", "build_attention_unet"]


def build_attention_unet(
    *, num_dims: int, in_channels: int, out_channels: int, filters: Sequence[int], strides: Sequence[Sequence[int]]
) -> nn.Module:
    """Build an Attention U-Net with batch normalisation, the only one that MONAI supports for it.

    Args:
        num_dims: 2 or 3 spatial axes.
        in_channels: Number of channels of the image.
        out_channels: Number of logits per voxel.
        filters: Number of feature maps of each level, the finest first.
        strides: Stride into each level, one number per axis; the first is all ones.

    Returns:
        The network: images ``(B, in_channels, *spatial)`` to logits ``(B, out_channels, *spatial)``.
    """
    network: nn.Module = AttentionUnet(
        spatial_dims=num_dims,
        in_channels=in_channels,
        out_channels=out_channels,
        channels=tuple(filters),
        strides=[tuple(stride) for stride in strides[1:]],
    )
    return network


class AttentionUNetTrainer(UNetTrainer):
    """Trains an Attention U-Net on pictures or volumes; attributes are those of ``UNetTrainer``.

    Kernels are 3 along every axis. There is no deep supervision.
    """

    network_name = "Attention U-Net"
    network_builder = staticmethod(build_attention_unet)
    supervises_deeply = False
    options = SegmentationOptions(memory_factor=1.3)
    memory_factors: ClassVar = {"S": 0.7, "B": 1.3, "L": 2.4}

    @override
    def network_arguments(self, example_shape: Shape) -> dict[str, Any]:
        arguments = super().network_arguments(example_shape)
        del arguments["kernel_sizes"]
        return arguments


class AttentionUNetPredictor(Predictor):
    """Predicts with a trained Attention U-Net, given only its experiment folder."""


BUNDLE = Bundle(
    name="attention_unet",
    build_network=build_attention_unet,
    trainer=AttentionUNetTrainer,
    predictor=AttentionUNetPredictor,
)
