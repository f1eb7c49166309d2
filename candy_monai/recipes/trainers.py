"""The trainer of a planned run: a bundle's or the user's own, with its network and attributes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from candy_monai.errors import BadInputError, SettingsError, did_you_mean
from candy_monai.experiment.description import ExperimentDescription, example_shape
from candy_monai.nn.previous_stage import build_for_inputs
from candy_monai.recipes.options import MONAI_BUNDLE, TrainOptions
from candy_monai.registry import choice_of_network, class_from_file, find_bundle
from candy_monai.training.segmentation import SegmentationTrainer


def chosen_trainer(options: TrainOptions) -> type[SegmentationTrainer]:
    """Return the trainer that options name, with its network.

    Raises:
        BadInputError: If there is no such trainer, network or argument of it.
    """
    arguments = dict(options.network_args or {})
    if options.network is None and options.bundle != MONAI_BUNDLE:
        return _with_network(find_trainer(bundle=options.bundle, own=options.trainer), arguments)
    by_name = {} if options.network is None else {"network": options.network}
    return _with_network(find_trainer(bundle=MONAI_BUNDLE), {**by_name, "network_args": arguments})


def _with_network(trainer: type[SegmentationTrainer], options: Mapping[str, object]) -> type[SegmentationTrainer]:
    chooser = choice_of_network(trainer)
    if chooser is not None:
        chosen: type[SegmentationTrainer] = chooser.with_network(options)
        return chosen
    if options:
        raise SettingsError(f"--network-args: {trainer.__name__} builds its network itself; leave them out")
    return trainer


def trainer_with_network_of(
    trainer: type[SegmentationTrainer], description: ExperimentDescription
) -> type[SegmentationTrainer]:
    """Return a trainer with the network that an experiment's was told to have, such as its ``size``."""
    arguments = description.network.arguments or {}
    chooser = choice_of_network(trainer)
    names = () if chooser is None else chooser.network_options
    return _with_network(trainer, {name: arguments[name] for name in names if name in arguments})


def network_again(trainer: SegmentationTrainer, folder: Path, description: ExperimentDescription) -> nn.Module:
    """Return the network that a trainer builds for an experiment, without its weights.

    Raises:
        ExperimentError: If the shape that it was built for is unknown.
    """
    return build_for_inputs(
        trainer.build_network,
        example_shape(folder, description),
        slice_axis=trainer.slice_axis,
        num_previous=trainer._num_previous,
    )


def find_trainer(*, bundle: str | None = None, own: str | type[object] | None = None) -> type[SegmentationTrainer]:
    """Return the user's own trainer, imported from ``FILE:Class`` or given as a class, or else a bundle's.

    Raises:
        BadInputError: If there is no such bundle, file or class, or it cannot follow a plan.
    """
    found: object
    if own is None:
        assert bundle is not None
        what, found = f"the trainer of bundle {bundle!r}", find_bundle(bundle).trainer
    else:
        what, found = f"--trainer {own}", own if isinstance(own, type) else class_from_file(own, option="--trainer")
    if not isinstance(found, type) or not issubclass(found, SegmentationTrainer):
        raise BadInputError(f"{what} is not a SegmentationTrainer")
    return found


def check_trainer_args(trainer: type[SegmentationTrainer], attributes: Mapping[str, object]) -> None:
    """Refuse what is no plain attribute of a trainer, and values of another type than the attribute's own.

    Raises:
        SettingsError: With the name and what is expected.
    """
    known = {
        name: value
        for base in reversed(trainer.__mro__)
        for name, value in vars(base).items()
        if not name.startswith("_")
        and (value is None or isinstance(value, bool | int | float | str | tuple))
        and not str(vars(base).get("__annotations__", {}).get(name, "")).startswith("ClassVar")
    }
    known = {name: value for name, value in known.items() if name not in _OF_THE_PLAN}
    for name, value in attributes.items():
        if name not in known:
            hint = did_you_mean(name, known) or f" Known: {', '.join(sorted(known))}"
            if _OF_THE_PLAN.get(name):
                hint = f" The plan decides it: --set {_OF_THE_PLAN[name]}=..."
            raise SettingsError(f"--trainer-args: {trainer.__name__} has no attribute {name!r} that can be set.{hint}")
        default = known[name]
        kinds = {float: (int, float), tuple: (tuple, list)}.get(type(default), (type(default),))  # JSON has lists
        if value is not None and default is not None:
            is_one = isinstance(value, kinds) and isinstance(value, bool) == isinstance(default, bool)
            if not is_one:
                expected = f"{type(default).__name__}, such as {default!r}"
                raise SettingsError(f"--trainer-args {name}: got {value!r}, expected {expected}")


_OF_THE_PLAN = {
    "num_classes": "num_classes",
    "ignore_index": "",
    "slice_axis": "slice_axis",
    "inferer": "",
    "plan": "",
    "score_range": "",
    "filters": "filters",
    "num_dims": "",
    "size": "",
    "image_size": "",
}
"""Attributes of trainers that follow from the plan or the network's size, by the entry that decides each."""
