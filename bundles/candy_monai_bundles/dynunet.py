"""The residual U-Net of nnU-Net's ResEnc plans, as MONAI's DynUNet: one residual block per level, layout by the plan.

Isensee et al., *nnU-Net revisited: a call for rigorous validation in 3D medical image segmentation*, MICCAI 2024,
arXiv:2404.09556. nnU-Net itself has up to six residual blocks per level; MONAI's network has one.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from candy_monai.inference.predictor import Predictor
from candy_monai.registry import Bundle
from candy_monai.training.options import SegmentationOptions
from candy_monai_bundles.unet import UNetTrainer, build_unet

__all__ = ["BUNDLE", "DynUNetPredictor", "DynUNetTrainer", "build_dynunet"]


def build_dynunet(**arguments: Any) -> nn.Module:
    """Build a U-Net with residual blocks in its encoder; arguments and errors are those of ``build_unet``."""
    return build_unet(**arguments, residual=True)


class DynUNetTrainer(UNetTrainer):
    """Trains a U-Net with residual blocks on pictures or volumes; attributes are those of ``UNetTrainer``."""

    network_name = "the residual U-Net"
    network_builder = staticmethod(build_dynunet)
    options = SegmentationOptions(memory_factor=1.1)
    memory_factors: ClassVar = {"S": 0.6, "B": 1.1, "L": 2.2}


class DynUNetPredictor(Predictor):
    """Predicts with a trained residual U-Net, given only its experiment folder."""


BUNDLE = Bundle(name="dynunet", build_network=build_dynunet, trainer=DynUNetTrainer, predictor=DynUNetPredictor)
