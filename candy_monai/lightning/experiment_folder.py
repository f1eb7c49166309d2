"""An experiment folder of this package, written while Lightning trains.

A training is continued from Lightning's own checkpoints, which include the state of this callback: the continued
training uses the same folder.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from candy_monai.aliases import PathLike
from candy_monai.config import load_secrets
from candy_monai.errors import WARNING, ExperimentError, SettingsError
from candy_monai.experiment.checkpoints import BEST, WeightsKind
from candy_monai.experiment.description import describe_trainer
from candy_monai.experiment.events import RunStarted
from candy_monai.experiment.experiment import Experiment
from candy_monai.experiment.history import column_beside, why_no_number
from candy_monai.experiment.hosted import HostedExperiment
from candy_monai.experiment.settings import TrainSettings
from candy_monai.experiment.state import Progress, RunWeights, TrainerState, load_state
from candy_monai.forecasting.curve import ScoreRange
from candy_monai.frontends.base import Frontend
from candy_monai.frontends.choice import choose_frontend
from candy_monai.frontends.delivery import Dashboards
from candy_monai.lightning.host import (
    WEIGHT_AVERAGING,
    WEIGHT_AVERAGING_IN_VALIDATION,
    Callback,
    LightningModule,
    Trainer,
    is_fitting,
    isolate_rng,
    planned_epochs,
    rank_zero_warn,
)
from candy_monai.lightning.scores import MonitoredScores, learning_rate
from candy_monai.network import num_parameters
from candy_monai.nn.activations import tell_of_logits
from candy_monai.training.reporting import Reporter, own_observers, words_at_end

_ENDLESS = 1_000_000
"""Number of epochs of a training that has neither ``max_epochs`` nor ``max_steps``."""
_PRECISIONS: dict[str, Literal["bf16", "fp16"]] = {"16-mixed": "fp16", "bf16-mixed": "bf16"}


@dataclass(frozen=True, kw_only=True)
class _Pending:
    """An epoch that has ended but is not yet part of the experiment."""

    is_scored: bool  # whether it was validated at its end
    is_over: bool = True  # whether metrics logged per epoch are known, too
    score: float | None = None  # once it is read
    metrics: Mapping[str, Any] = field(default_factory=dict)  # once they are read


class ExperimentFolder(Callback):
    """Write a folder as trainers of this package do: description, log, metrics, curves, forecast and weights.

    The folder is ``<root>/<module's class>/<experiment id>``. Each epoch is one row of ``metrics.csv`` with all logged
    metrics; the monitored metric is its ``val score``. ``checkpoint_best.pth`` holds the weights that were scored: with
    a ``WeightAveraging`` callback, the averaged weights. With several processes only the first one writes.

    An epoch has a score if it was validated after its last batch, and the metric was logged in it. The state of this
    callback is part of Lightning's checkpoints: ``trainer.fit(..., ckpt_path=...)`` continues in the same folder, after
    the epoch of the checkpoint; rows and weights of later epochs, trained before, are replaced. Another
    ``trainer.fit(...)`` for more epochs continues in it, too. ``candy-monai resume`` does not continue such a run,
    since only its script knows the data.

    If the folder cannot be created, this is an error before training. If it cannot be written later, such as on a full
    disk, there is a warning, training continues, and writing is tried again after each epoch.

    Args:
        root: The folder of all experiments.
        monitor: The metric's name, as it is logged.
        mode: ``max`` if it is better when higher, ``min`` if it is better when lower: the score is then its negative.
        network: The module's attribute whose weights are saved, such as ``"net"``; None for the whole module.
        score_range: The smallest and the largest value of the metric, each None for no bound; None if it is unknown.
        num_checkpoints: Number of evenly spaced weight files to keep besides the best and the latest.
        note: A note about this run.
        frontends: Dashboards to report to, by name or class.

    Attributes:
        experiment: The run, in the first process, while it is trained; None otherwise.
        folder: The experiment folder; None before training begins.

    Raises:
        SettingsError: If an argument is invalid, or no such metric is logged until the first validated epoch ends.
    """

    def __init__(
        self,
        root: PathLike = "experiments",
        *,
        monitor: str,
        mode: str = "max",
        network: str | None = None,
        score_range: ScoreRange | None = None,
        num_checkpoints: int = 0,
        note: str = "",
        frontends: Sequence[str | type[Frontend]] = (),
    ) -> None:
        self.monitor, self.mode = monitor, mode
        self.experiment: HostedExperiment | None = None
        self.folder: Path | None = None
        self._root = Path(root)
        self._curve = MonitoredScores(monitor, mode, score_range, by=type(self).__name__)
        self._network = network
        self._num_checkpoints, self._note = num_checkpoints, note
        frontend = choose_frontend(frontends)
        self._dashboards = None if frontend is None else Dashboards(frontend(load_secrets()))
        self._reporter = Reporter()
        self._unwatch: Callable[[], None] = lambda: None
        self._restored: Mapping[str, Any] | None = None
        self._ended: Mapping[str, Any] | None = None
        self._averaged: dict[str, Tensor] | None = None
        self._raw: dict[str, Any] | None = None
        self._pending: _Pending | None = None
        self._earlier: dict[str, Any] = {}
        self._trainer: Trainer | None = None

    @property
    @override
    def state_key(self) -> str:
        return str(self._generate_state_key(root=str(self._root), monitor=self.monitor))

    # How a run begins and ends

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:
            return
        self._trainer, self._earlier = trainer, {}
        weights = self._weights(trainer, pl_module)  # all processes take part if the module is sharded
        folder = None
        if trainer.is_global_zero:
            with isolate_rng():  # first-time imports may draw random numbers
                folder = self._begin(trainer, pl_module, weights)
        folder = trainer.strategy.broadcast(None if folder is None else str(folder))
        self.folder = None if folder is None else Path(folder)

    def _begin(self, trainer: Trainer, pl_module: LightningModule, weights: RunWeights) -> Path:
        """Publish a new folder, or open that of the run to continue, and return it."""
        settings = self._settings(trainer)
        description = describe_trainer(type(pl_module).__name__, self._entries(trainer, pl_module))
        parent = self._root / type(pl_module).__name__
        experiment = self._reopened(settings, trainer, parent)
        is_resumed = experiment is not None
        if experiment is None:
            folder = Experiment.publish(parent, settings, description, weights, _STATE)
            experiment = HostedExperiment(folder, settings, warn=rank_zero_warn)
        else:
            experiment.describe(description)
        self.experiment = self._reporter.experiment = experiment
        experiment.score_range = self._curve.score_range
        others = () if self._dashboards is None else self._dashboards.deliveries(self._reporter.report)
        self._reporter.observe([*own_observers(settings, self._reporter.report, console=False), *others])
        self._reporter.log(f"Experiment {experiment.experiment_id} in {experiment.folder}")
        where = f"{trainer.strategy.root_device}, {trainer.world_size} process{'es' * (trainer.world_size > 1)}"
        self._reporter.log(f"{type(pl_module).__name__} on {where}, by Lightning's Trainer")
        self._unwatch = tell_of_logits(pl_module, lambda fault: self._reporter.log_once(f"{WARNING}{fault}"))
        if is_resumed:
            num_done = experiment.progress.epoch + (self._pending is not None)
            self._reporter.log(f"Continued after epoch {num_done}")
        module = self._saved_module(pl_module)
        started = RunStarted(
            experiment_id=experiment.experiment_id,
            folder=experiment.folder,
            trainer=type(pl_module).__name__,
            model=type(module).__name__,
            note=self._note,
            num_params=num_parameters(module),
            num_macs=math.nan,  # counting them would require an additional call of the module
            num_epochs=settings.num_epochs,
            early_stop_tolerance=None,
        )
        self._reporter.notify(started)
        return experiment.folder

    def _reopened(self, settings: TrainSettings, trainer: Trainer, parent: Path) -> HostedExperiment | None:
        """Return the run to continue, in its state at that time; None for a new one.

        It is that of Lightning's checkpoint, or that of the last ``fit``, if this one begins where that one ended.
        """
        state, self._restored = self._restored, None
        last, self._ended = self._ended, None
        if state is None and last is not None and 0 < trainer.current_epoch == _num_epochs_in(last):
            state = last if Path(last["folder"]).parent == parent.resolve() else None
        if state is None or state["folder"] is None:
            return None
        folder = Path(state["folder"])
        try:
            saved = load_state(folder)
        except ExperimentError as error:
            rank_zero_warn(f"ExperimentFolder: the run continues in a new folder, since {error}")
            return None
        experiment = HostedExperiment(folder, settings, warn=rank_zero_warn)
        with experiment.closed_on_failure():
            experiment.restore(
                dataclasses.replace(saved, history=state["history"], progress=Progress(**state["progress"]))
            )
            best = experiment.checkpoints.records.get(BEST)
            if best is not None and best.epoch > experiment.progress.epoch:
                # The weights of the best epoch before the checkpoint are gone: the next epoch replaces the file.
                del experiment.checkpoints.records[BEST]
                experiment.progress.best_score, experiment.progress.best_epoch = -math.inf, 0
        if state["pending"] is not None:
            self._pending = _Pending(**state["pending"])
        return experiment

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:
            return
        self._finish_epoch(trainer, pl_module)
        if (experiment := self.experiment) is None:
            return
        self._reporter.report_saved_epoch(wait=True)
        self._reporter.log_all(words_at_end(experiment))
        self._reporter.notify(experiment.finished())
        self._ended = self.state_dict()
        self._close()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.experiment is None:
            return
        with suppress(Exception):  # it must not hide the error
            self._ended = self.state_dict()
        self._reporter.report_interruption(exception)
        self._close()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    def _close(self) -> None:
        self._unwatch()
        experiment, self.experiment = self.experiment, None
        self._averaged = self._raw = self._reporter.unreported = self._pending = self._trainer = None
        if experiment is not None:
            self._reporter.close()
            experiment.close()
            self._reporter.experiment = None

    # Epochs

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:
            return
        self._finish_epoch(trainer, pl_module)
        self._curve.begin_epoch(trainer)
        self._earlier = dict(trainer.callback_metrics)
        if (experiment := self.experiment) is None:
            return
        while experiment.progress.epoch < trainer.current_epoch:  # trained before this callback was added
            experiment.finish_epoch(None)
        experiment.begin_epoch(learning_rate(trainer))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._reporter.report_saved_epoch(wait=False)

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        is_first = batch_idx == dataloader_idx == 0
        if not is_first or not is_fitting(trainer) or not _is_averaging(trainer, WEIGHT_AVERAGING_IN_VALIDATION):
            return
        # The averaged weights are in the module only during the validation.
        self._averaged = self._copied(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_fitting(trainer):
            return
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._pending = _Pending(is_scored=True, is_over=False)
        else:
            self._averaged = None

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._pending is None and not trainer.fast_dev_run:
            self._pending = _Pending(is_scored=not trainer.enable_validation)
        elif self._pending is not None:
            self._pending = dataclasses.replace(self._pending, is_over=True)
        if _is_averaging(trainer):  # at the end of training, such a callback leaves its average in the module
            self._raw = self._copied(trainer, pl_module)

    def _finish_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish the last epoch, if one has ended.

        This is done before the next one begins, or when the training ends: other callbacks and the module itself may
        log in their ``on_train_epoch_end``, which is called after that of this callback.
        """
        weights = self._weights(trainer, pl_module)  # all processes take part if the module is sharded
        pending, self._pending = self._pending, None
        self._averaged = self._raw = None
        experiment = self.experiment
        if pending is None or experiment is None:
            return
        self._reporter.report_saved_epoch(wait=True)
        told = self._told(trainer, pending)
        for name, value in told.metrics.items():
            experiment.history.record(column_beside(name), value)
        improved = experiment.finish_epoch(told.score)
        is_best = improved or experiment.progress.best_epoch == 0
        experiment.save_epoch(weights, _STATE, score=told.score, is_best=is_best)
        self._reporter.unreported = experiment.epoch_finished(told.score, None)

    def _told(self, trainer: Trainer, pending: _Pending) -> _Pending:
        """Return an epoch that has ended with its score and its logged metrics."""
        if pending.metrics:  # of a checkpoint, read when it was saved
            return pending
        metrics = _numbers(trainer, self._earlier, known=self._columns())
        if not pending.is_over:  # a metric with a value per step gets one per epoch later
            metrics = {name: value for name, value in metrics.items() if f"{name}_step" not in trainer.callback_metrics}
        score = None
        if pending.is_scored and (pending.is_over or self.monitor in metrics):
            value = self._curve.new_value(trainer)
            score = None if value is None else self._curve.as_score(value)
        return dataclasses.replace(pending, score=score, metrics=metrics)

    def _columns(self) -> Container[str]:
        return () if self.experiment is None else self.experiment.history.metrics()

    # What is saved

    @override
    def state_dict(self) -> dict[str, Any]:
        experiment = self.experiment
        if experiment is None:  # also if the script saves a checkpoint after the training
            return {"folder": None} if self._ended is None else dict(self._ended)
        pending = None
        if self._pending is not None and self._trainer is not None:
            told = self._told(self._trainer, self._pending)
            metrics = {name: float(value) for name, value in told.metrics.items()}
            pending = dataclasses.asdict(dataclasses.replace(told, metrics=metrics))
        return {
            "folder": str(experiment.folder.resolve()),
            "history": experiment.history.state_dict(),
            "progress": dataclasses.asdict(dataclasses.replace(experiment.progress, epoch_s=experiment.epoch_s)),
            "pending": pending,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def _weights(self, trainer: Trainer, pl_module: LightningModule) -> RunWeights:
        """Return the module's weights, and those that the last validation scored."""
        raw = self._state_dict(trainer, pl_module) if self._raw is None else self._raw
        kind: WeightsKind = "raw" if self._averaged is None else "ema"
        return RunWeights(raw=raw, scored=raw if self._averaged is None else self._averaged, kind=kind)

    def _copied(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        state = self._state_dict(trainer, pl_module)
        return {name: value.detach().clone() if isinstance(value, Tensor) else value for name, value in state.items()}

    def _state_dict(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        state: dict[str, Any] = trainer.strategy.lightning_module_state_dict()
        if self._network is None:
            return state
        self._saved_module(pl_module)
        start = f"{self._network}."
        return {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}

    def _saved_module(self, pl_module: LightningModule) -> torch.nn.Module:
        module: torch.nn.Module = pl_module
        if self._network is None:
            return module
        found = getattr(pl_module, self._network, None)
        if not isinstance(found, torch.nn.Module):
            known = ", ".join(name for name, _ in pl_module.named_children())
            raise SettingsError(
                f"ExperimentFolder(network={self._network!r}): {type(pl_module).__name__} has no network of this name; "
                f"its own are: {known}"
            )
        return found

    def _settings(self, trainer: Trainer) -> TrainSettings:
        seed = os.environ.get("PL_GLOBAL_SEED", "")
        return TrainSettings(
            num_epochs=planned_epochs(trainer) or _ENDLESS,
            note=self._note,
            num_checkpoints=self._num_checkpoints,
            ema=_is_averaging(trainer, WEIGHT_AVERAGING_IN_VALIDATION),
            seed=int(seed) if seed.isdigit() else None,
            early_stop_tolerance=None,
            save_preview=False,
            amp=_PRECISIONS.get(str(trainer.precision)),
            accumulate=int(trainer.accumulate_grad_batches),
            validate_every=int(trainer.check_val_every_n_epoch or 1),
        )

    def _entries(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, object]:
        """Return the content of ``experiment.json`` except the run's settings."""
        optimizers = [{"kind": type(each).__name__, **each.defaults} for each in trainer.optimizers]
        module, package = self._saved_module(pl_module), type(trainer).__module__.partition(".")[0].replace("_", "-")
        return {
            "host": f"{package} {metadata.version(package)}",
            "monitor": {"metric": self.monitor, "mode": self.mode},
            "score_range": None if self._curve.score_range is None else list(self._curve.score_range),
            "processes": trainer.world_size,
            "hyperparameters": dict(pl_module.hparams),
            "parts": {
                "network": f"{type(module).__name__} of {num_parameters(module)} parameters",
                "optimizer": optimizers,
                "scheduler": [type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs],
            },
        }


_STATE = TrainerState(optimizer={})
"""Empty, since optimizer, schedule and random generators are in Lightning's checkpoints."""


def _num_epochs_in(state: Mapping[str, Any]) -> int:
    """Return the number of epochs that had ended in a state of the callback."""
    return int(state["progress"]["epoch"]) + (state["pending"] is not None)


def _is_averaging(trainer: Trainer, kinds: tuple[type, ...] = WEIGHT_AVERAGING) -> bool:
    return any(isinstance(callback, kinds) for callback in trainer.callbacks)


def _numbers(trainer: Trainer, earlier: Mapping[str, Any], *, known: Container[str]) -> dict[str, Any]:
    """Return the metrics logged since the earlier ones, each once: Lightning keeps those of a step, too."""
    metrics = trainer.callback_metrics
    found = {}
    for name, value in metrics.items():
        plain = name.removesuffix("_epoch").removesuffix("_step")
        is_of_a_step = plain != name and (plain in metrics or plain in known)
        if value is earlier.get(name) or is_of_a_step or why_no_number(value) is not None:
            continue
        found[name] = value.detach().clone() if isinstance(value, Tensor) else value
    return found
