"""Describe the parts of a run in plain values: for ``experiment.json``, for observers, and to resume it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn, optim
from torch.utils.data import DataLoader

from candy_monai.data.datasets.transform_names import names_of_transforms
from candy_monai.data.inspection.digest import CaseSource, dataset_digest
from candy_monai.errors import SettingsError
from candy_monai.experiment.description import ExperimentDescription, as_json, describe_trainer
from candy_monai.experiment.events import RunStarted
from candy_monai.experiment.experiment import Experiment
from candy_monai.network import count_macs, num_parameters, plain_network
from candy_monai.nn.padding import padding_to_dict
from candy_monai.processes import Processes
from candy_monai.registry import bundle_of_network
from candy_monai.training.loaders import Loaders, num_cases
from candy_monai.training.schedule import plain_schedule
from candy_monai.training.sharding import unsharded
from candy_monai.training.toolbox import Equipment, TrainerToolbox

if TYPE_CHECKING:
    from candy_monai.training.hooks import Hooks


def describe_run(
    trainer: Hooks, equipment: Equipment, loaders: Loaders, processes: Processes, facts: Mapping[str, object]
) -> ExperimentDescription:
    """Return the content of ``experiment.json`` except the run's settings.

    Raises:
        ExperimentError: If an entry of the trainer's ``describe`` has the name of another and is of another type.
        SettingsError: If its ``score_range`` is invalid.
    """
    check_score_range(trainer.score_range)
    entries = {
        "bundle": bundle_of(trainer),
        "padding": padding_to_dict(equipment.padding),
        "score_range": None if trainer.score_range is None else list(trainer.score_range),
        "processes": processes.world_size,
        "data": {"training": describe_loader(loaders.training), "validation": describe_loader(loaders.validation)},
        "parts": _parts(equipment.toolbox, loaders),
        **trainer.describe(equipment.example_shape),
        **facts,
    }
    return describe_trainer(type(trainer).__name__, entries)


def run_started(
    run: Experiment, trainer: str, equipment: Equipment, *, class_names: tuple[str, ...] = ()
) -> RunStarted:
    """Return the event that describes what is about to be trained."""
    network = plain_network(equipment.toolbox.model)
    return RunStarted(
        experiment_id=run.experiment_id,
        folder=run.folder,
        trainer=trainer,
        model=type(network).__name__,
        note=run.settings.note,
        num_params=num_parameters(network),
        num_macs=count_macs(network, equipment.example_shape),
        num_epochs=run.settings.num_epochs,
        early_stop_tolerance=run.early_stopping.tolerance,
        class_names=class_names,
        epoch=run.progress.epoch,
        summary=summary_of(network),
    )


def summary_of(network: nn.Module) -> str:
    """Return a table of a network's parts: name, class and number of trainable parameters of each, and the total."""
    parts = [(name, type(part).__name__, f"{num_parameters(part):,}") for name, part in network.named_children()]
    rows = [("part", "class", "parameters"), *parts, ("all", type(network).__name__, f"{num_parameters(network):,}")]
    name, kind, number = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join(f"{row[0]:<{name}}  {row[1]:<{kind}}  {row[2]:>{number}}" for row in rows)


def bundle_of(trainer: Hooks) -> str | None:
    """Return the bundle that can rebuild this trainer's network; None if a subclass builds its own."""
    return None if "build_network" in vars(trainer) else bundle_of_network(type(trainer))


def check_score_range(score_range: object) -> None:
    """Raise if a value is not a range of scores.

    Raises:
        SettingsError: If it is neither None nor a pair of bounds, each None or a number, the first below the second.
    """
    if score_range is None:
        return
    if isinstance(score_range, tuple | list) and len(score_range) == 2:
        numbers = [value for value in score_range if isinstance(value, int | float) and not isinstance(value, bool)]
        others = [value for value in score_range if value is not None and value not in numbers]
        if not others and (len(numbers) < 2 or numbers[0] < numbers[1]):
            return
    raise SettingsError(
        "score_range must be the smallest and the largest possible validation score, None for no bound, such as "
        f"(0, 1) or (None, 0), got {score_range!r}"
    )


def describe_loader(loader: DataLoader[Any] | None) -> dict[str, object] | None:
    """Return the number of samples and the cases of a loader, its labels if known, and the transforms of its images."""
    if loader is None:
        return None
    case_ids = getattr(loader.dataset, "case_ids", None)
    cases = None if case_ids is None else _digest("\0".join(case_ids))
    transforms = names_of_transforms(loader.dataset)
    described: dict[str, object] = {"samples": num_cases(loader), "batch_size": loader.batch_size, "cases": cases}
    if isinstance(loader.dataset, CaseSource) and (labels := loader.dataset.description.labels):
        described["labels"] = labels
    return {**described, "transforms": transforms}


def describe_network(network: nn.Module) -> str:
    """Return the kind, the size and a digest of the layers of a network, equal for networks that are built alike."""
    layers = _digest(str(as_json(network)))
    return f"{type(network).__name__} of {num_parameters(network)} parameters, layers {layers}"


def describe_optimizer(optimizer: optim.Optimizer) -> dict[str, object]:
    """Return the kind of an optimizer, and its numeric hyperparameters."""
    plain = unsharded(optimizer)
    numbers = [name for name, value in plain.defaults.items() if isinstance(value, float | tuple) and name != "lr"]
    return {
        "kind": type(plain).__name__,
        "lr": [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups],
        **{name: [group[name] for group in optimizer.param_groups] for name in numbers},
    }


def _parts(toolbox: TrainerToolbox, loaders: Loaders) -> dict[str, object]:
    """Return values that are equal for runs that are composed in the same way."""
    return {
        "network": describe_network(plain_network(toolbox.model)),
        "optimizer": describe_optimizer(toolbox.optimizer),
        "scheduler": type(plain_schedule(toolbox.scheduler)).__name__,
        "criterion": type(toolbox.criterion).__name__,
        "ema": None if toolbox.ema is None else type(toolbox.ema).__name__,
        "training data": _content_of(loaders.training),
        "validation data": None if loaders.validation is None else _content_of(loaders.validation),
    }


def _content_of(loader: DataLoader[Any]) -> str | None:
    """Return a digest of the files of a dataset that lists them; None for any other."""
    if not isinstance(loader.dataset, CaseSource):
        return None
    try:
        return dataset_digest(loader.dataset)
    except OSError:  # loading gives a better error message
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
