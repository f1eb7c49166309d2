"""The predictor of the U-Net."""

from __future__ import annotations

from candy_monai.inference.predictor import Predictor


class UNetPredictor(Predictor):
    """Predicts with a trained U-Net, from its experiment folder alone."""
