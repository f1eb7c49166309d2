"""Find a saved run of MONAI's engines, compare it with the present one, and load it into the engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from monai.inferers import Inferer
from torch import nn
from torch.utils.data import DataLoader

from candy_monai.aliases import PathLike
from candy_monai.errors import ExperimentError
from candy_monai.experiment.description import ExperimentDescription, describe_trainer, read_description
from candy_monai.experiment.hosted import HostedExperiment
from candy_monai.experiment.runs import runs_below, summarize
from candy_monai.experiment.state import load_state, stored_weights
from candy_monai.forecasting.curve import ScoreRange
from candy_monai.handlers.engine_state import EngineParts
from candy_monai.handlers.engines import network_of
from candy_monai.handlers.options import FoundScore
from candy_monai.inference.inferer_descriptions import describe_inferer
from candy_monai.nn.ema import ExponentialMovingAverage
from candy_monai.processes import Processes
from candy_monai.seeding import GeneratorStates
from candy_monai.training.description import describe_loader, describe_network, describe_optimizer
from candy_monai.training.resume import refusing_what_does_not_fit, restored_in_all

LATEST_RUN = "latest"
"""Continues the newest run if it is not finished, or else starts a new one."""
HOST = "monai"


def describe_engines(
    engine: Any,
    score: FoundScore | None,
    *,
    processes: int,
    score_range: ScoreRange | None,
    example_shape: Sequence[int] | None,
    averages: bool,
) -> ExperimentDescription:
    """Return the content of ``experiment.json`` for a run of MONAI's engines; ``averages``: of the weights, by EMA."""
    validator = None if score is None else score.validator
    inferer = getattr(validator, "inferer", None)
    loss = engine.loss_function
    return describe_trainer(
        type(engine).__name__,
        {
            "host": HOST,
            "score_range": None if score_range is None else list(score_range),
            "processes": processes,
            "data": {
                "training": _described_loader(engine.data_loader),
                "validation": None if validator is None else _described_loader(validator.data_loader),
            },
            "parts": {
                "network": describe_network(network_of(engine)),
                "optimizer": describe_optimizer(engine.optimizer),
                "criterion": type(loss).__name__ if isinstance(loss, nn.Module) else getattr(loss, "__name__", None),
                "ema": ExponentialMovingAverage.__name__ if averages else None,
                "score": None if score is None else f"{'-' * score.negative}{score.name}",
                "accumulation_steps": engine.accumulation_steps,
            },
            "network": {"example_shape": None if example_shape is None else list(example_shape)},
            "inferer": describe_inferer(inferer) if isinstance(inferer, Inferer) else None,
        },
    )


def _described_loader(loader: object) -> dict[str, object] | None:
    return describe_loader(loader) if isinstance(loader, DataLoader) else None


@dataclass(frozen=True, kw_only=True)
class SavedEngineRun:
    """A run of MONAI's engines on disk.

    If the engines are still as they left the run ``before``, nothing is loaded: its last epochs may not be on the disk.
    """

    folder: Path
    description: ExperimentDescription
    num_epochs_done: int  # number of saved epochs
    first_epoch: int  # number of the trainer's epochs before the first one of the run
    example_shape: tuple[int, ...] | None  # the shape ``(C, *spatial)`` of an image; None if it is not known
    before: HostedExperiment | None = None

    @classmethod
    def load(cls, folder: Path, *, before: HostedExperiment | None = None) -> Self:
        """Read a run's description and state; ``before`` is the run as the engines left it, if they are as it did."""
        description, state = read_description(folder), load_state(folder)
        if description.host != HOST:
            raise ExperimentError(f"{folder}: was trained by {description.trainer}, not by MONAI's engines")
        extra = state.trainer.extra
        try:
            first_epoch, example = extra["counts"]["first_epoch"], extra["example_shape"]
        except (LookupError, TypeError) as error:
            raise ExperimentError(f"{folder}: its state is not that of a run of MONAI's engines") from error
        return cls(
            folder=folder,
            description=description,
            num_epochs_done=state.progress.epoch,
            first_epoch=first_epoch,
            example_shape=None if example is None else tuple(example),
            before=before,
        )

    @classmethod
    def find(cls, resume: PathLike, parent: Path, processes: Processes) -> Self | None:
        """Return the run to continue: a folder, an id in ``parent``, or ``"latest"``, which the first process finds."""
        if resume == LATEST_RUN:
            newest = None
            if processes.is_main:
                newest = next(iter(runs_below(parent)), None) if parent.is_dir() else None
                if newest is not None and summarize(newest).is_finished:
                    newest = None
            folder = processes.broadcast(newest)
            return None if folder is None else cls.load(folder)
        own = parent / resume
        return cls.load(own if own.is_dir() else Path(resume))

    def reopened(
        self,
        experiment: HostedExperiment,
        parts: EngineParts,
        network: nn.Module,
        ema: ExponentialMovingAverage | None,
        processes: Processes,
    ) -> tuple[GeneratorStates | None, list[str]]:
        """Restore the experiment, and load weights and states into the engines.

        Returns:
            The saved random generators, None if they are not to be changed; and the names of parts that were not saved.
        """
        state = restored_in_all(experiment, processes, "these engines")
        if self.before is not None:
            experiment.go_on_from(self.before)
            return None, []
        with refusing_what_does_not_fit(self.folder, "these engines"):
            weights = stored_weights(state, experiment.checkpoints, self.folder)
            network.load_state_dict(weights.raw)
            if ema is not None:
                ema.module.load_state_dict(weights.scored)
            unsaved = parts.load(state.trainer)
            return GeneratorStates(**state.trainer.of_process(processes.rank)["generators"]), unsaved
