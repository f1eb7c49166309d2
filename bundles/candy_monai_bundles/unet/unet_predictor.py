"""The predictor of the U-Net."""

from __future__ import annotations

from torch import nn
from typing_extensions import override

from candy_monai.aliases import Shape
from candy_monai.inference.predictor import Predictor
from candy_monai_bundles.unet.network import build_unet


class UNetPredictor(Predictor):
    """Predicts with a trained U-Net, from its experiment folder alone."""

    @override
    def build_network(self, example_shape: Shape) -> nn.Module:
        return build_unet(**self.network_arguments())
