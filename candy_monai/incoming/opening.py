"""Open the folder of a trained model as a predictor, according to the kind of the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch import nn

from candy_monai.aliases import Device, PathLike
from candy_monai.errors import BadInputError
from candy_monai.experiment.description import DESCRIPTION
from candy_monai.incoming.bundle_config import CONFIGS, SUFFIXES
from candy_monai.incoming.monai_bundle import load_bundle
from candy_monai.incoming.nnunet import NNUNetPredictor, is_nnunet_folder
from candy_monai.inference.ensemble import EnsemblePredictor
from candy_monai.inference.network_predictor import NetworkPredictor
from candy_monai.inference.predictor import experiment_predictor

ModelKind = Literal["experiment", "MONAI Bundle", "nnU-Net"]


def kind_of_model(folder: PathLike) -> ModelKind | None:
    """Return the kind of trained model in a folder, by the names of its files; None if it is not known."""
    path = Path(folder)
    if (path / DESCRIPTION).is_file():
        return "experiment"
    if any((path / CONFIGS / f"inference{suffix}").is_file() for suffix in SUFFIXES):
        return "MONAI Bundle"
    if is_nnunet_folder(path):
        return "nnU-Net"
    return None


def load_predictor(
    experiment: PathLike,
    *,
    network: nn.Module | None = None,
    checkpoint: str = "best",
    device: Device = "cpu",
    **options: Any,
) -> NetworkPredictor | EnsemblePredictor:
    """Return the predictor of a trained model: an experiment, whose bundle may have its own, or an external model.

    Args:
        experiment: The experiment folder, or that of a MONAI Bundle or of a trained nnU-Net v2.
        network: The network to load the weights into, for trainers that belong to no bundle.
        checkpoint: ``best``, ``latest``, or the name of a weight file in the folder.
        device: The device for prediction.
        options: Further keywords of `Predictor`, such as ``mirror`` and ``memory``.

    Raises:
        ExperimentError: If the folder is not an experiment, or its network cannot be rebuilt.
        BadInputError: If a model of another kind cannot be opened (see `load_bundle`), or a network is given for one
            that defines its own network.
    """
    match kind_of_model(experiment):
        case "MONAI Bundle" | "nnU-Net" as kind if network is not None:
            raise BadInputError(f"{experiment}: {kind} models define their own network; leave out network")
        case "MONAI Bundle":
            return load_bundle(experiment, checkpoint=checkpoint, device=device, **options)
        case "nnU-Net":
            return NNUNetPredictor(experiment, checkpoint=checkpoint, device=device, **options)
    return experiment_predictor(experiment, network=network, checkpoint=checkpoint, device=device, **options)
