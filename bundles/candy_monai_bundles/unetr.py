"""MONAI's UNETR: a vision transformer as encoder and a convolutional decoder, for patches of one size.

Hatamizadeh et al., *UNETR: transformers for 3D medical image segmentation*, WACV 2022, arXiv:2103.10504. It learns an
embedding for each position, so whole images are always predicted in windows of the size of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from monai.networks.nets import UNETR
from torch import nn

from candy_monai.inference.predictor import Predictor
from candy_monai.optional import require
from candy_monai.registry import Bundle
from candy_monai.training.options import SegmentationOptions
from candy_monai_bundles.base import BundleTrainer

__all__ = ["BUNDLE", "UNETRPredictor", "UNETRTrainer", "build_unetr"]

SIZES: dict[str, dict[str, Any]] = {
    "S": {"hidden_size": 384, "mlp_dim": 1536, "num_heads": 6},
    "B": {"hidden_size": 768, "mlp_dim": 3072, "num_heads": 12},
}


def build_unetr(
    *, num_dims: int, in_channels: int, out_channels: int, image_size: Sequence[int], size: str = "B"
) -> nn.Module:
    """Build a UNETR with instance normalisation.

    Args:
        num_dims: 2 or 3 spatial axes.
        in_channels: Number of channels of the image.
        out_channels: Number of logits per voxel.
        image_size: Length of each axis, multiples of 16.
        size: ``"S"``, with half the paper's width, or ``"B"``, as in the paper.

    Returns:
        The network: images ``(B, in_channels, *image_size)`` to logits ``(B, out_channels, *image_size)``.

    Raises:
        SettingsError: If there is no such size.
        MissingExtraError: If ``einops`` is not installed, which MONAI needs for it.
    """
    UNETRTrainer.check_size(size)
    require("einops", extra="einops", purpose="build UNETR")
    network: nn.Module = UNETR(
        in_channels=in_channels,
        out_channels=out_channels,
        img_size=tuple(image_size),
        spatial_dims=num_dims,
        **SIZES[size],
    )
    return network


class UNETRTrainer(BundleTrainer):
    """Trains a UNETR on pictures or volumes, with AdamW, a warm-up and a cosine schedule.

    Attributes:
        size: ``"S"`` or ``"B"``.
    """

    network_name = "UNETR"
    network_builder = staticmethod(build_unetr)
    sizes = SIZES
    size = "B"
    memory_factors: ClassVar = {"S": 1.1, "B": 1.6}
    divisor = 16
    has_fixed_size = True
    warms_up = True
    options = SegmentationOptions(learning_rate=4e-4, weight_decay=1e-5)


class UNETRPredictor(Predictor):
    """Predicts with a trained UNETR, given only its experiment folder."""


BUNDLE = Bundle(name="unetr", build_network=build_unetr, trainer=UNETRTrainer, predictor=UNETRPredictor)
