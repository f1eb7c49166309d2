"""Record a run of MONAI's engines as an experiment, and notify its observers.

`Recorder.lasting` surrounds the run. During it, the progress is reported by the trainer's events: `begin` at the start,
then those of `handlers`.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from ignite.engine import Events
from monai.engines import Evaluator
from torch import nn
from typing_extensions import override

from candy_monai.columns import LOSS
from candy_monai.errors import WARNING, ExperimentError, RunFailedError
from candy_monai.experiment.events import MessageLogged, RunStarted, StepFinished
from candy_monai.experiment.experiment import Experiment
from candy_monai.experiment.history import column_beside, why_no_number
from candy_monai.experiment.hosted import HostedExperiment
from candy_monai.experiment.settings import TrainSettings, whole_number
from candy_monai.experiment.state import RunWeights
from candy_monai.forecasting.curve import is_within
from candy_monai.handlers.engine_state import EngineParts, why_not_to_the_bit
from candy_monai.handlers.engines import contexts_around, network_of
from candy_monai.handlers.options import FoundScore, RunOptions
from candy_monai.handlers.outputs import image_shape_of, loss_of, numbers_in
from candy_monai.handlers.saved_run import SavedEngineRun, describe_engines
from candy_monai.network import num_parameters, plain_weights
from candy_monai.nn.activations import tell_of_logits
from candy_monai.observers.base import Observer
from candy_monai.own_generators import OwnGenerators
from candy_monai.processes import Processes
from candy_monai.seeding import GeneratorStates
from candy_monai.training.reporting import Reporter, own_observers, words_at_end

LOGGER = logging.getLogger("candy_monai.handlers")


class Recorder:
    """One run of a trainer, on disk if requested, by the options of its handlers and the evaluators that they run.

    ``before`` is the recorder of the trainer's previous run. An error is raised if the handlers contradict each other
    or the engines, or if a run to continue is not usable or differs from this one.
    """

    def __init__(
        self,
        engine: Any,
        options: RunOptions,
        validators: list[Evaluator],
        processes: Processes,
        *,
        before: Recorder | None = None,
    ) -> None:
        self._engine = engine
        self._options = options
        self._processes = processes
        self._score = options.score.found(validators)
        chosen = [] if self._score is None else [self._score.validator]
        self._validators = [*chosen, *(one for one in validators if one not in chosen)]
        self._parts = EngineParts(engine, self._validators, options.save_dict, options.ema)
        whole_number(1).check("the trainer's max_epochs", engine.state.max_epochs)
        stop: dict[str, Any] = {"early_stop_tolerance": None}
        if options.stop is not None:
            confidence, margin = options.stop
            stop = {
                "early_stop_tolerance": "forecast",
                "early_stop_confidence": confidence,
                "early_stop_margin": margin,
            }
        self._settings = TrainSettings(
            num_epochs=engine.state.max_epochs,
            note=options.note,
            num_checkpoints=options.num_checkpoints,
            ema=options.ema is not None,
            save_preview=options.preview is not None,
            **stop,
        )
        self._saved = self._run_to_go_on_with(before)
        self._reporter = Reporter()
        self._unwatch: Callable[[], None] = lambda: None
        self._generators = OwnGenerators()
        self._validated: dict[int, tuple[int, dict[str, Any]]] = {}
        self._example: tuple[int, ...] | None = None
        self._num_steps = 0
        self._first_epoch = 0
        self.experiment: HostedExperiment | None = None  # until `begin`
        self.last_epoch = 0  # of the trainer, at the end of the run

    def handlers(self) -> Mapping[Any, Callable[..., None]]:
        """Return the handlers of the trainer's events."""
        return {
            Events.EPOCH_STARTED: self._epoch_started,
            Events.ITERATION_COMPLETED: self._iteration_completed,
            Events.EPOCH_COMPLETED: self._finish_epoch,
        }

    @contextmanager
    def lasting(self) -> Iterator[None]:
        """Surround the run: collect its evaluators' metrics, and close it however it ends."""
        validating = {one: partial(self._validating, one) for one in self._validators}
        for one, context in validating.items():
            contexts_around(one).append(context)
        try:
            yield
            if self.experiment is not None:
                self._conclude()
        except BaseException as error:
            if self.experiment is not None:
                self._report_failure(error)
            raise
        finally:
            for one, context in validating.items():
                contexts_around(one).remove(context)
            self._close()

    def begin(self) -> None:
        """Publish the experiment folder, or continue with that of a saved run."""
        engine, processes, options = self._engine, self._processes, self._options
        self._generators = OwnGenerators.of(
            loader=engine.data_loader,
            validation_loaders=[one.data_loader for one in self._validators],
            network=network_of(engine),
            loss=engine.loss_function,
        )
        generators = GeneratorStates.capture(self._generators)
        if self._saved is not None:
            generators = self._restore(self._saved) or generators
        else:
            self._first_epoch = engine.state.epoch
            epochs = max(1, engine.state.max_epochs - self._first_epoch)
            self._settings = dataclasses.replace(self._settings, num_epochs=epochs)
            self.experiment = self._opened(self._publish())
        experiment = self._reporter.experiment = self.experiment
        assert experiment is not None
        experiment.score_range = options.score.score_range
        if processes.is_main:
            report, console = self._reporter.report, options.console
            observers = [ToLogger(), *own_observers(self._settings, report, console=console, curves=self._writes)]
            for dashboards in options.dashboards:
                observers += dashboards.deliveries(report)
            self._reporter.observe(observers)
        self._reporter.log_all(self._words_at_start())
        self._reporter.log_waiting()
        self._reporter.notify(self._run_started())
        if isinstance(loss := engine.loss_function, nn.Module):
            self._unwatch = tell_of_logits(loss, lambda fault: self._reporter.log_once(f"{WARNING}{fault}"))
        generators.restore(self._generators)  # first-time imports may have drawn random numbers

    @property
    def is_complete(self) -> bool:
        """Whether the run is finished."""
        return self.experiment is not None and self.experiment.is_complete

    @property
    def _writes(self) -> bool:
        return self._options.save_dir is not None and self._processes.is_main

    def _run_to_go_on_with(self, before: Recorder | None) -> SavedEngineRun | None:
        options, engine = self._options, self._engine
        if options.save_dir is None:
            return None
        same = before is not None and before.experiment is not None and 0 < before.last_epoch == engine.state.epoch
        if same and engine.state.epoch < engine.state.max_epochs:  # run() was called again, for more epochs
            assert before is not None
            assert before.experiment is not None
            return SavedEngineRun.load(before.experiment.folder, before=before.experiment)
        if options.resume is None or (before is not None and before.is_complete):
            return None
        return SavedEngineRun.find(options.resume, self._parent(), self._processes)

    def _parent(self) -> Path:
        assert self._options.save_dir is not None
        return Path(self._options.save_dir) / type(self._engine).__name__

    def _description(self) -> Any:
        return describe_engines(
            self._engine,
            self._score,
            processes=self._processes.world_size,
            score_range=self._options.score.score_range,
            example_shape=self._example,
            averages=self._options.ema is not None,
        )

    def _publish(self) -> Path:
        """Return the new folder, or only a path with a new name if nothing is written."""
        folder, state = None, self._state()
        if self._writes:
            folder = Experiment.publish(self._parent(), self._settings, self._description(), self._weights(), state)
        elif self._processes.is_main:
            folder = Path(f"{datetime.now():%Y%m%d-%H}-{secrets.token_hex(2)}")
        folder = self._processes.broadcast(folder)
        assert folder is not None
        return folder

    def _opened(self, folder: Path) -> HostedExperiment:
        return HostedExperiment(folder, self._settings, warn=LOGGER.warning, writes=self._writes)

    def _restore(self, saved: SavedEngineRun) -> GeneratorStates | None:
        """Continue a saved run; return the states of the random generators, or None if they are not to be changed."""
        engine = self._engine
        self._example = saved.example_shape
        self._first_epoch = saved.first_epoch
        epochs = engine.state.max_epochs - self._first_epoch
        if epochs < saved.num_epochs_done:
            raise ExperimentError(
                f"{saved.folder}: {saved.num_epochs_done} epochs are done, but the trainer's max_epochs is "
                f"{engine.state.max_epochs}: set it to at least as many"
            )
        self._settings = dataclasses.replace(self._settings, num_epochs=epochs)
        if saved.before is None and not self._options.force:
            saved.description.refuse_differences(
                self._description(), saved.folder, how="ExperimentFolderHandler(..., force=True)"
            )
        experiment = self._opened(saved.folder)
        with experiment.closed_on_failure():
            parts = self._parts, network_of(engine), self._options.ema
            generators, unsaved = saved.reopened(experiment, *parts, self._processes)
        experiment.is_stopped = False
        self.experiment = experiment
        if unsaved:
            self._reporter.log(f"Not saved with the run, and started anew: {', '.join(unsaved)}")
        return generators

    def _words_at_start(self) -> Iterator[str]:
        experiment, engine, score = self._current(), self._engine, self._score
        plural = "s" * (experiment.settings.num_epochs != 1)
        where = f" in {experiment.folder}" if self._options.save_dir is not None else ""
        yield f"Experiment {experiment.experiment_id}{where}"
        count = f", {self._processes.world_size} processes" * (self._processes.world_size > 1)
        epochs = f"{experiment.settings.num_epochs} epoch{plural}"
        yield f"MONAI's {type(engine).__name__} on {engine.state.device}{count}, {epochs}"
        if experiment.progress.epoch:
            yield f"Continued after epoch {experiment.progress.epoch}"
        elif experiment.settings.note:
            yield f"Note: {experiment.settings.note}"
        if self._first_epoch:
            yield f"The trainer has done {self._first_epoch} epochs before, which are not counted here"
        if score is None:
            why = "the evaluator has no key metric" if self._validators else "the trainer runs no evaluator"
            yield f"There is no score, forecast or early stopping, and the last weights are saved as the best: {why}"
        else:
            yield f"The score of an epoch is the evaluator's {score.name}{', negated' * score.negative}"
        if self._writes and (reason := why_not_to_the_bit(engine)):
            yield f"If this run is interrupted, the resumed run may give other numbers: {reason}"

    def _run_started(self) -> RunStarted:
        experiment, network = self._current(), network_of(self._engine)
        return RunStarted(
            experiment_id=experiment.experiment_id,
            folder=experiment.folder,
            trainer=type(self._engine).__name__,
            model=type(network).__name__,
            note=experiment.settings.note,
            num_params=num_parameters(network),
            num_macs=math.nan,
            num_epochs=experiment.settings.num_epochs,
            early_stop_tolerance=experiment.early_stopping.tolerance,
        )

    # During the run

    def _epoch_started(self) -> None:
        self._current().begin_epoch(self._engine.optimizer.param_groups[0]["lr"])
        self._num_steps = 0
        self._validated.clear()

    def _iteration_completed(self) -> None:
        experiment, engine = self._current(), self._engine
        self._num_steps += 1
        experiment.progress.step += 1
        for name, value in self._measured(engine.state.output).items():
            experiment.history.record(name, value)
        if self._example is None:
            self._example = image_shape_of(engine.state.output)
        self._reporter.report_saved_epoch(wait=False)
        total, size = engine.state.epoch_length, getattr(engine.data_loader, "batch_size", None)
        size = None if size is None else size * self._processes.world_size
        self._reporter.notify(StepFinished(experiment.progress.epoch + 1, "training", self._num_steps, total, size))

    def _measured(self, output: Any) -> dict[str, Any]:
        """Return the numbers of an iteration by their columns, without waiting for a GPU."""
        transform = self._options.output_transform
        found = loss_of(output) if transform is None else transform(output)
        numbers = found if isinstance(found, Mapping) else {LOSS: found}
        measured = {}
        for name, value in numbers.items():
            value = value[0] if isinstance(value, list | tuple) and value else value
            if (what := why_no_number(value)) is None:
                measured[name if name == LOSS else column_beside(str(name))] = value
            elif found is not None:
                self._reporter.log_once(
                    f"Warning: {name} of an iteration is {what}, not one number, and is not recorded"
                )
        if found is None:
            self._reporter.log_once(
                "Warning: an iteration's output holds no loss: give an output_transform=... that returns it"
            )
        return measured

    @contextmanager
    def _validating(self, validator: Evaluator) -> Iterator[None]:
        yield
        if self.experiment is not None:
            metrics = dict(validator.state.metrics)
            self._validated[self._validators.index(validator)] = self._engine.state.iteration, metrics

    def _finish_epoch(self, *, is_cut: bool = False) -> None:
        experiment, engine, processes = self._current(), self._engine, self._processes
        self._reporter.report_saved_epoch(wait=True)
        score = None if is_cut else self._take_metrics()
        score = processes.broadcast(score)
        experiment.history.absorb(processes.all_gather(experiment.history.pending()))
        improved = experiment.finish_epoch(score)
        stops = processes.broadcast(experiment.early_stopping.triggered)
        if stops and not is_cut:
            engine.terminate()
        is_last = engine.state.epoch >= engine.state.max_epochs  # a handler may have lowered max_epochs
        experiment.is_stopped = is_cut or is_last or bool(engine.should_terminate)
        self.last_epoch = engine.state.epoch
        is_best = improved or experiment.progress.best_epoch == 0  # the newest, until there is a score
        state = self._state()
        if self._writes:
            if experiment.progress.epoch == 1:
                experiment.describe(self._description())  # the shape of an image is known now
            experiment.save_epoch(self._weights(), state, score=score, is_best=is_best)
        preview = None
        if self._options.preview is not None and processes.is_main:
            preview = self._options.preview(experiment.folder)
        self._reporter.unreported = experiment.epoch_finished(score, preview)

    def _take_metrics(self) -> float | None:
        """Record the engines' metrics, and return the score of the present weights."""
        score = None
        for name, value in self._engine.state.metrics.items():
            for column, number in numbers_in(str(name), value):
                self._current().history.record(column_beside(column), number)
        for index, (iteration, metrics) in sorted(self._validated.items()):
            for name, value in metrics.items():
                prefixed = f"val{index + 1} {name}" if index else name if name.startswith("val") else f"val {name}"
                for column, number in numbers_in(prefixed, value):
                    self._current().history.record(column_beside(column), number)
            if index == 0 and self._score is not None:
                if iteration == self._engine.state.iteration:
                    score = self._score_in(metrics, self._score)
                else:
                    self._reporter.log_once(
                        "Warning: the evaluator ran before the end of the epoch, so its metrics are recorded, but "
                        "are not the score of the epoch: run it at the last iteration, too"
                    )
        return score

    def _score_in(self, metrics: Mapping[str, Any], score: FoundScore) -> float | None:
        if score.name not in metrics:
            raise ExperimentError(
                f"the evaluator measured no {score.name!r}, which was chosen as the score; it measured "
                f"{', '.join(map(repr, metrics)) or 'nothing'}"
            )
        if (what := why_no_number(metrics[score.name])) is not None:
            self._reporter.log_once(
                f"Warning: there is no score, since {score.name} is {what}, not one number: choose another metric of "
                "the evaluator, key_metric_name=..."
            )
            return None
        value = -float(metrics[score.name]) if score.negative else float(metrics[score.name])
        if (bounds := self._options.score.score_range) is not None and not is_within([value], bounds):
            negated = f", the negative of {score.name}" * score.negative
            self._reporter.log_once(
                f"Warning: a score is outside of score_range={bounds}, so the forecast does not use this range; it is "
                f"that of the score{negated}"
            )
        return value

    # How it ends

    def _conclude(self) -> None:
        experiment, engine = self._current(), self._engine
        if engine.should_terminate and self._num_steps and engine.state.epoch > self.last_epoch:
            self._finish_epoch(is_cut=True)
        self._reporter.report_saved_epoch(wait=True)
        if not experiment.is_complete:
            where = f"the trainer ended in epoch {experiment.progress.epoch + 1}"
            self._report_failure(RunFailedError(f"{where}, and a handler suppressed the error"))
            return
        is_early = engine.should_terminate or experiment.progress.epoch < self._settings.num_epochs
        if is_early and not experiment.early_stopping.triggered:
            self._reporter.log(f"The trainer was ended by another handler after epoch {experiment.progress.epoch}")
        self._reporter.log_all(words_at_end(experiment))
        self._reporter.notify(experiment.finished())

    def _report_failure(self, error: BaseException) -> None:
        experiment, hints = self._current(), []
        if self._options.save_dir is not None and self._processes.is_main:
            hints.append(
                f'To resume after epoch {experiment.progress.epoch}: ExperimentFolderHandler(..., resume="latest"), '
                f'or resume="{experiment.folder}"'
            )
        self._reporter.report_interruption(error, hints=hints)

    def _close(self) -> None:
        self._unwatch()
        self._reporter.unreported = None
        self._reporter.close()
        if self.experiment is not None:
            self.experiment.close()

    # What is saved

    def _current(self) -> HostedExperiment:
        assert self.experiment is not None
        return self.experiment

    def _weights(self) -> RunWeights:
        raw, ema = plain_weights(network_of(self._engine)), self._options.ema
        return RunWeights(
            raw=raw, scored=raw if ema is None else plain_weights(ema), kind="raw" if ema is None else "ema"
        )

    def _state(self) -> Any:
        """Return what a resumed run needs, from all processes; None if nothing is saved."""
        if self._options.save_dir is None:
            return None
        generators = GeneratorStates.capture(self._generators).state_dict()
        own = {"generators": generators, "epoch_generators": None, "pending": {}}
        return self._parts.state(
            processes=self._processes.all_gather(own),
            num_epochs=self._settings.num_epochs,
            first_epoch=self._first_epoch,
            example=self._example,
        )


class ToLogger(Observer):
    """Passes the messages of a run to Python's logging, as MONAI's handlers do."""

    name = "logging"

    @override
    def on_message_logged(self, event: MessageLogged) -> None:
        is_warning = event.text.startswith("Warning")
        LOGGER.log(logging.WARNING if is_warning else logging.INFO, event.line)
