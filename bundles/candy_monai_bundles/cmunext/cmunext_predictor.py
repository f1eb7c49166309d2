"""The predictor of CMUNeXt."""

from __future__ import annotations

from candy_monai.inference.predictor import Predictor


class CMUNeXtPredictor(Predictor):
    """Predicts with a trained CMUNeXt, from its experiment folder alone."""
