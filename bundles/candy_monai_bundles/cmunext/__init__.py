"""CMUNeXt as a ready-made trainer and predictor, for pictures.

The shape of an example and a size enter; a network with its trainer leaves.
"""

from candy_monai.registry import Bundle
from candy_monai_bundles.cmunext.cmunext_predictor import CMUNeXtPredictor
from candy_monai_bundles.cmunext.cmunext_trainer import CMUNeXtTrainer
from candy_monai_bundles.cmunext.network import build_cmunext

__all__ = ["BUNDLE", "CMUNeXtPredictor", "CMUNeXtTrainer", "build_cmunext"]

BUNDLE = Bundle(name="cmunext", build_network=build_cmunext, trainer=CMUNeXtTrainer, predictor=CMUNeXtPredictor)
