"""The U-Net of MONAI as a ready-made trainer and predictor, 2-D and 3-D.

The shape of an example and a plan's choices enter; a network with its trainer leaves.
"""

from candy_monai.registry import Bundle
from candy_monai_bundles.unet.network import build_unet
from candy_monai_bundles.unet.unet_predictor import UNetPredictor
from candy_monai_bundles.unet.unet_trainer import UNetTrainer

__all__ = ["BUNDLE", "UNetPredictor", "UNetTrainer", "build_unet"]

BUNDLE = Bundle(name="unet", build_network=build_unet, trainer=UNetTrainer, predictor=UNetPredictor)
