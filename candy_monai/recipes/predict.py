"""From experiment folders to a predictor: what the command line's ``predict`` does before it predicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from candy_monai.aliases import PathLike
from candy_monai.data.planning import Plan
from candy_monai.experiment.folder import example_shape, read_description
from candy_monai.inference.cases import CasePredictor
from candy_monai.inference.ensemble import EnsemblePredictor
from candy_monai.inference.loading import load_predictor
from candy_monai.inference.predictor import Predictor
from candy_monai.recipes.train import load_trainer_class
from candy_monai.training.segmentation import SegmentationTrainer


def load_experiments(
    experiments: Sequence[PathLike],
    *,
    trainer: str | None = None,
    checkpoint: str = "best",
    device: str = "cpu",
    mirror: bool = False,
    largest_component: bool = False,
    memory: int | None = None,
) -> CasePredictor:
    """Return the predictor of one experiment, or of several as an ensemble.

    Args:
        experiments: The experiment folders.
        trainer: ``FILE:Class``, the trainer of your own that the experiments belong to; None for bundles.
        checkpoint: ``best``, ``latest``, or the name of a weight file.
        device: Where to predict.
        mirror: Average over the mirror images along the plan's axes.
        largest_component: Keep only the largest connected part of each class.
        memory: Bytes that a case may take; None for as many as it needs.

    Raises:
        BadInputError: If an experiment cannot be loaded, or the experiments do not fit together.
    """
    trainer_class = None if trainer is None else load_trainer_class(trainer)
    several = len(experiments) > 1
    options: dict[str, Any] = {"checkpoint": checkpoint, "device": device, "mirror": mirror}
    if not several:
        options |= {"largest_component": largest_component, "memory": memory}
    members = [
        load_predictor(folder, **options) if trainer_class is None else _own_predictor(folder, trainer_class, options)
        for folder in experiments
    ]
    if not several:
        return members[0]
    return EnsemblePredictor(members, largest_component=largest_component, memory=memory)


def _own_predictor(folder: PathLike, trainer_class: type[SegmentationTrainer], options: dict[str, Any]) -> Predictor:
    """Ask a trainer of the user's own for the network, the padding and the inferer."""
    description = read_description(folder)
    trainer = trainer_class("unused", None, None, console=False)  # type: ignore[arg-type]  # it trains nothing
    plan = description.get("plan")
    if isinstance(plan, dict):
        trainer.use_plan(Plan.from_dict(plan))
    elif isinstance(classes := description.get("num_classes"), int):
        trainer.num_classes = classes
    return Predictor(
        folder,
        network=trainer.build_network(example_shape(folder, description)),
        padding=trainer.build_padding_module(),
        inferer=trainer.inferer if description.get("inferer") == "custom" else None,
        **options,
    )
