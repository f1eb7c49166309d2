"""MONAI's Swin UNETR in its second version: shifted-window attention with a residual convolution before each stage.

He et al., *SwinUNETR-V2: stronger Swin transformers with stagewise convolutions for 3D medical image segmentation*,
MICCAI 2023; Hatamizadeh et al., *Swin UNETR*, BrainLes 2021, arXiv:2201.01266.
"""

from __future__ import annotations

from typing import Any, ClassVar

from monai.networks.nets import SwinUNETR
from torch import nn

from candy_monai.inference.predictor import Predictor
from candy_monai.optional import require
from candy_monai.registry import Bundle
from candy_monai.training.options import SegmentationOptions
from candy_monai_bundles.base import BundleTrainer

__all__ = ["BUNDLE", "SwinUNETRPredictor", "SwinUNETRTrainer", "build_swin_unetr"]

SIZES: dict[str, dict[str, Any]] = {"S": {"feature_size": 24}, "B": {"feature_size": 48}}


def build_swin_unetr(*, num_dims: int, in_channels: int, out_channels: int, size: str = "S") -> nn.Module:
    """Build a Swin UNETR V2 with instance normalisation.

    Args:
        num_dims: 2 or 3 spatial axes.
        in_channels: Number of channels of the image.
        out_channels: Number of logits per voxel.
        size: ``"S"`` for 24 features, MONAI's default, or ``"B"`` for the paper's 48.

    Returns:
        The network: images ``(B, in_channels, *spatial)``, each axis a multiple of 32, to logits
        ``(B, out_channels, *spatial)``.

    Raises:
        SettingsError: If there is no such size.
        MissingExtraError: If ``einops`` is not installed, which MONAI needs for it.
    """
    SwinUNETRTrainer.check_size(size)
    require("einops", extra="einops", purpose="build Swin UNETR")
    network: nn.Module = SwinUNETR(
        in_channels=in_channels, out_channels=out_channels, spatial_dims=num_dims, use_v2=True, **SIZES[size]
    )
    return network


class SwinUNETRTrainer(BundleTrainer):
    """Trains a Swin UNETR on pictures or volumes, with AdamW, a warm-up and a cosine schedule.

    Attributes:
        size: ``"S"`` or ``"B"``.
    """

    network_name = "Swin UNETR"
    network_builder = staticmethod(build_swin_unetr)
    normalizes_each_case = True
    sizes = SIZES
    size = "S"
    memory_factors: ClassVar = {"S": 2.9, "B": 4.1}
    divisor = 32
    warms_up = True
    options = SegmentationOptions(learning_rate=8e-4, weight_decay=1e-5)


class SwinUNETRPredictor(Predictor):
    """Predicts with a trained Swin UNETR, given only its experiment folder."""


BUNDLE = Bundle(
    name="swin_unetr", build_network=build_swin_unetr, trainer=SwinUNETRTrainer, predictor=SwinUNETRPredictor
)
