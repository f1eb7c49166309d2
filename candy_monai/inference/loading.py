"""Which predictor belongs to an experiment: its bundle's where it has one. Predicts nothing."""

from __future__ import annotations

from typing import Any

from torch import nn

from candy_monai.aliases import Device, PathLike
from candy_monai.errors import ExperimentError
from candy_monai.experiment.description import read_description
from candy_monai.inference.predictor import Predictor
from candy_monai.registry import find_bundle


def load_predictor(
    experiment: PathLike,
    *,
    network: nn.Module | None = None,
    checkpoint: str = "best",
    device: Device = "cpu",
    **options: Any,
) -> Predictor:
    """Return the predictor of an experiment: its bundle's where it belongs to one, else a plain `Predictor`.

    Args:
        experiment: The experiment folder.
        network: The network to load the weights into, for trainers that belong to no bundle.
        checkpoint: ``best``, ``latest``, or the name of a weight file in the folder.
        device: Where to predict.
        options: Further keywords of `Predictor`, such as ``mirror`` and ``memory``.

    Raises:
        ExperimentError: If the folder is no experiment, or its network cannot be built again.
    """
    bundle = read_description(experiment).bundle
    predictor = find_bundle(bundle).predictor if bundle is not None else Predictor
    if not issubclass(predictor, Predictor):
        raise ExperimentError(f"the predictor of bundle {bundle!r} is not a Predictor")
    return predictor(experiment, network=network, checkpoint=checkpoint, device=device, **options)
