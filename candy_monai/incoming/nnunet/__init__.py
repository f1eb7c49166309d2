"""Trained models of nnU-Net v2: their folder, plans and network, and a predictor that reproduces nnU-Net's results.

From a folder ``TRAINER__PLANS__CONFIGURATION``, this package builds a `Plan` that preprocesses as nnU-Net does, a
network with its weights along this library's axes, and a predictor. Neither nnU-Net nor anything that the folder names
is imported; of ``dynamic-network-architectures`` only the classes listed here.
"""

from candy_monai.incoming.nnunet.folder import NNUNetFolder, find_nnunet_folder, is_nnunet_folder
from candy_monai.incoming.nnunet.network import ARCHITECTURES, NNUNET_NETWORKS, MeanOfFolds, build_network
from candy_monai.incoming.nnunet.predictor import (
    NNUNetInferer,
    NNUNetPredictor,
    load_nnunet_network,
    mean_of_rounded_folds,
)

__all__ = [
    "ARCHITECTURES",
    "NNUNET_NETWORKS",
    "MeanOfFolds",
    "NNUNetFolder",
    "NNUNetInferer",
    "NNUNetPredictor",
    "build_network",
    "find_nnunet_folder",
    "is_nnunet_folder",
    "load_nnunet_network",
    "mean_of_rounded_folds",
]
