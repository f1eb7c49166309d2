"""The state of one run, and its start, saves, reports and end.

`TrainingRun` does not see the trainer, only the functions in `Callbacks`. Its methods are called in this order:

1. the constructor chooses seed and precision and splits the loaders among processes;
2. `equip` takes the toolbox;
3. `begin` creates the experiment folder, or opens that of a saved run, and notifies the observers;
4. for each epoch: `begin_epoch`; `batches`; after each optimizer step `agree` and `finish_step`; `finish_training`;
   `finish_epoch`;
5. `conclude` reports how the run ended.

`lasting` is the ``with`` block around steps 2 to 5. The loop itself is in ``trainer.py``, and reading a saved run in
``resume.py``.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from monai.data import SmartCacheDataset

from candy_monai.aliases import Scalar
from candy_monai.attachment import attachment_of, tensors_in
from candy_monai.errors import WARNING, BadInputError, ExperimentError
from candy_monai.experiment.description import ExperimentDescription
from candy_monai.experiment.experiment import Experiment
from candy_monai.experiment.history import column_beside
from candy_monai.experiment.references import learn_from_earlier_runs
from candy_monai.experiment.settings import TrainSettings
from candy_monai.experiment.state import RunWeights, TrainerState
from candy_monai.forecasting.curve import ScoreRange
from candy_monai.network import check_precision, choose_precision, plain_network
from candy_monai.observers.base import Observer
from candy_monai.own_generators import OwnGenerators
from candy_monai.processes import Processes
from candy_monai.seeding import GeneratorStates, draw_seed, set_seed
from candy_monai.training.agreement import Agreement, SaveTimer, agree
from candy_monai.training.averaging import GradientAverage
from candy_monai.training.description import run_started
from candy_monai.training.hooks import Callbacks
from candy_monai.training.loaders import Loaders, RunBatches, length
from candy_monai.training.reporting import Message, Reporter, caveats, own_observers, words_at_end, words_at_start
from candy_monai.training.resume import SavedRun, state_of, unsaved_parts, weights_of
from candy_monai.training.run_validations import RunValidations
from candy_monai.training.schedule import default_warm_up, end_in_time, step_after_epoch, warmed_up
from candy_monai.training.sharding import whole_state
from candy_monai.training.signals import Interrupted, StopRequest
from candy_monai.training.toolbox import Equipment, TrainerToolbox


class TrainingRun:
    """The state of one run of `Trainer.train`.

    Args:
        settings: The keywords of ``train``.
        loaders: The user's loaders, before they are split among processes.
        callbacks: The trainer's functions.
        device: The device of the networks.
        processes: The connected processes that train together; None for this one only.
        messages: Messages that were logged before the run.
        rehearses: Whether steps are only measured and nothing is recorded.

    Attributes:
        settings: The keywords of ``train``, with seed, precision and warm-up chosen.
        loaders: The loaders of this process's share of the samples.
        experiment: The run on disk; None before `begin`.
        data: The training batches and the random generators.
        stop: Whether a signal requested the end of the run.
        validations: The results of validations.
        is_over: Whether the run has ended, for whatever reason.

    Raises:
        BadInputError: If a loader yields nothing or cannot be split among processes.
        SettingsError: If batch normalisation cannot be synchronised.
    """

    def __init__(
        self,
        settings: TrainSettings,
        loaders: Loaders,
        callbacks: Callbacks,
        *,
        device: torch.device,
        processes: Processes | None = None,
        messages: Sequence[Message] = (),
        rehearses: bool = False,
    ) -> None:
        loaders.check()
        self.processes = processes or Processes()
        if settings.sync_batchnorm:
            self.processes.check_sync_batchnorm(device)
        check_precision(settings.amp, device)
        self.loaders = loaders.shared(self.processes)
        self.device = device
        self.callbacks = callbacks
        seed = self.processes.broadcast(draw_seed() if settings.seed is None else settings.seed)
        set_seed(seed, deterministic=settings.deterministic)
        warm_up = settings.warm_up
        if warm_up is None and settings.init_from is not None:
            steps = length(self.loaders.training)
            warm_up = default_warm_up(None if steps is None else steps * settings.num_epochs)
        precision = choose_precision(settings.amp, device)
        self.settings = dataclasses.replace(settings, seed=seed, amp=precision, warm_up=warm_up)
        self._equipment: Equipment | None = None
        self._gradients: GradientAverage | None = None
        self._sent_as: Mapping[str, Any] | None = None
        self.experiment: Experiment | None = None
        self.reporter = Reporter(messages)
        self.data = RunBatches(self.loaders)
        self.stop = StopRequest()
        self.validations = RunValidations(self.processes, self.reporter)
        self.is_over = False
        self._rehearses = rehearses
        self._has_begun = False
        self._console = False
        self._schedule_epochs = self.settings.num_epochs
        self._save_timer = SaveTimer(self.settings.save_every)
        self._closing = ExitStack()

    # How a run begins and ends

    def equip(self, equipment: Equipment) -> None:
        """Set the equipment with the toolbox, and find the user's random generators."""
        self._equipment = equipment
        self._closing.callback(equipment.close)
        toolbox = equipment.toolbox
        self.validations.scored = "raw" if toolbox.ema is None else "ema"
        self.data.own = OwnGenerators.of(
            loader=self.loaders.training,
            validation_loader=self.loaders.validation,
            network=plain_network(toolbox.model),
            criterion=toolbox.criterion,
            trainer=self.callbacks.attributes(),
        )

    def begin(
        self,
        description: ExperimentDescription,
        *,
        parent: Path,
        files: Mapping[str, str | Path] | None = None,
        saved: SavedRun | None = None,
        score_range: ScoreRange | None = None,
        forecast_references: bool = False,
        observers: Callable[[], Sequence[Observer]] = tuple,
        console: bool = False,
    ) -> None:
        """Create the experiment folder, or open that of a saved run, and notify the observers.

        Args:
            description: The content of ``experiment.json``.
            parent: The folder of this trainer's experiments.
            files: Texts of further files to write into a new folder, or files to copy, by file name.
            saved: The run to continue; None for a new one.
            score_range: The lowest and the highest possible score.
            forecast_references: Whether the forecast learns from earlier runs of the same task.
            observers: Returns the observers that the run does not create itself.
            console: Whether to report on the screen.

        Raises:
            ExperimentError: If another process is training the saved run, or it differs from this one.
        """
        generators = (
            self._publish(parent, description, files or {}) if saved is None else self._restore(saved, description)
        )
        experiment = self.current()
        self._closing.callback(experiment.close)
        experiment.score_range = score_range
        knows = None
        if forecast_references and self.settings.forecasts:
            knows = learn_from_earlier_runs(experiment, description, self.processes)
        self._console = console
        if self.processes.is_main:
            others = observers()
            self.reporter.observe([*own_observers(self.settings, self.reporter.report, console=console), *others])
            self._closing.callback(self.reporter.close)
        self.reporter.log_all(
            words_at_start(experiment, self.callbacks.name, self.device, self.processes, is_resumed=saved is not None)
        )
        self.reporter.log_waiting()
        self.reporter.log_all([*caveats(self.settings, self.loaders, self.toolbox.scheduler), *self.data.caveats])
        if knows is not None:
            self.reporter.log(knows, on_screen=False)
        if self.processes.world_size > 1:
            self._average_gradients()
        self.reporter.class_names = names = description.class_names()
        self.reporter.notify(run_started(experiment, self.callbacks.name, self.equipment, class_names=names))
        # Restored last before the first step, since first-time imports may also draw random numbers.
        generators.restore(self.data.own)
        if saved is not None and saved.schedule is not None:
            self._save_point()
            experiment.describe(description)
        self._save_timer.restart(experiment.progress.batch)
        self._has_begun = True

    def _average_gradients(self) -> None:
        """Prepare to average the gradients of all processes, in a resumed run in the same way as before."""
        why_not = None if self.callbacks.one_pass else f"{self.callbacks.name} has _one_pass = False"
        self._gradients = GradientAverage(self.toolbox, self.processes, why_not=why_not, log=self.reporter.log)
        self._closing.callback(self._gradients.close)
        if self._sent_as is not None:
            self._gradients.load_state_dict(self._sent_as)

    def conclude(self) -> None:
        """Log how the run ended, and notify the observers."""
        experiment = self.current()
        self.reporter.report_saved_epoch(wait=True)
        self.reporter.log_all(words_at_end(experiment))
        self.reporter.notify(experiment.finished())

    @contextmanager
    def lasting(self) -> Iterator[None]:
        """Release the run's resources at the end of a ``with`` block; report an error in it to the observers first."""
        try:
            with self._closing:
                if isinstance(dataset := self.loaders.training.dataset, SmartCacheDataset):
                    self._closing.callback(dataset.shutdown)  # stops the thread that loads its next cases
                try:
                    yield
                except BaseException as error:
                    if self._has_begun:
                        self._report_failure(error)
                    raise
        finally:
            self._equipment = self.reporter.unreported = None
            self.validations.close()
            self.data.close()
            self.is_over = True

    def _report_failure(self, error: BaseException) -> None:
        is_asked_for = isinstance(error, Interrupted)
        how = self.callbacks.how_to_resume(self.current().folder) if is_asked_for and self.processes.is_main else ""
        self.reporter.report_interruption(error, what=str(error) if is_asked_for else None, hints=[how] if how else [])
        if how and not self._console:  # the program may end without any other output
            print(how, file=sys.stderr)

    def _publish(
        self, parent: Path, description: ExperimentDescription, files: Mapping[str, str | Path]
    ) -> GeneratorStates:
        """Create a new experiment and return the states of the random generators at its start."""
        for network in self.toolbox.networks:
            self.processes.broadcast_tensors(tensors_in(plain_network(network).state_dict()))
        if not self.processes.is_main:  # dropout must differ between processes
            assert self.settings.seed is not None
            seed = (self.settings.seed + self.processes.rank) % 2**32
            set_seed(seed, deterministic=self.settings.deterministic)
        generators, state = self.data.captured(), self._state()
        folder = None
        if self.processes.is_main:
            folder = Experiment.publish(parent, self.settings, description, self._weights(), state, files=files)
        folder = self.processes.broadcast(folder)
        assert folder is not None
        self.experiment = self.reporter.experiment = Experiment(folder, self.settings, writes=self.processes.is_main)
        return generators

    def _restore(self, saved: SavedRun, description: ExperimentDescription) -> GeneratorStates:
        """Restore a saved run and return the states of the random generators to continue with."""
        saved.refuse_differences(description)
        toolbox = self.toolbox
        reopened = saved.reopened(
            toolbox,
            lambda epochs: warmed_up(self.callbacks.build_scheduler(toolbox.optimizer, epochs), self.settings.warm_up),
            self.processes,
        )
        self.experiment = self.reporter.experiment = reopened.run
        self.settings = reopened.run.settings
        self.validations.scored, self._schedule_epochs = reopened.scored, reopened.schedule_epochs
        self._sent_as = reopened.gradients
        self.data.resume(reopened.epoch_generators)
        with reopened.run.closed_on_failure():
            self.equipment.scaler.load_state_dict(dict(reopened.scaler))
            if reopened.extra:
                self.callbacks.set_extra_state(reopened.extra)
        return reopened.generators

    # Epochs and steps

    def record(self, metric: str, value: Scalar) -> None:
        """Record one value of a metric.

        Raises:
            BadInputError: If it is not one number.
        """
        if self._rehearses:
            return
        column = column_beside(metric)
        self.current().history.record(column, value)
        if column != metric:
            message = f"The metric {metric!r} is recorded as {column!r}: the run already has a column of this name"
            self.reporter.log_once(message, on_screen=False)

    @property
    def equipment(self) -> Equipment:
        """The toolbox and its environment during the run.

        Raises:
            ExperimentError: Before `equip` and after the run.
        """
        if self._equipment is None:
            raise ExperimentError(f"this {self.callbacks.name} is not being trained at this moment")
        return self._equipment

    @property
    def toolbox(self) -> TrainerToolbox:
        """Model, optimizer and the rest."""
        return self.equipment.toolbox

    @property
    def is_complete(self) -> bool:
        """Whether the run has trained its last epoch."""
        return self.current().is_complete

    def begin_epoch(self) -> None:
        """Start the epoch's clock and record its learning rate."""
        self.current().begin_epoch(self.toolbox.optimizer.param_groups[0]["lr"])

    def batches(self) -> Iterator[object]:
        """Yield the remaining batches of the epoch.

        Raises:
            BadInputError: If the epoch has none at all.
        """
        progress = self.current().progress
        yield from self.data.of_epoch(progress.epoch, first=progress.batch)
        if not progress.batch:
            raise BadInputError(
                f"the training loader yielded no batch in epoch {progress.epoch + 1}: its dataset or sampler can be "
                "read only once; let __iter__ begin anew each time it is called"
            )

    def passing(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Return the ``with`` block of one call of ``backward``, which may be the last before the optimizer steps."""
        return nullcontext() if self._gradients is None else self._gradients.passing(is_last=is_last)

    def agree(self, num_batches: int, *, usable: bool) -> Agreement:
        """Decide with all processes what follows a step's batches, and average the gradients over the processes.

        ``usable`` says whether this process's losses were finite.
        """
        experiment = self.current()
        experiment.step_done(num_batches=num_batches)
        save = self._save_timer.is_over(experiment.progress.batch)
        own = Agreement(usable=usable, save=save, stop=self.stop.is_pending, cut=experiment.left_s <= 0)
        return agree(own, self._gradients)

    def finish_step(self, agreed: Agreement) -> None:
        """Fit the schedule to the remaining time, then save and stop the run if the processes agreed on it."""
        end_in_time(self.toolbox.scheduler, self.current(), self.loaders.training, self.processes)
        self._save_and_stop(save=agreed.save, stop=agreed.stop)

    def finish_training(self) -> None:
        """Copy the buffers of the first process, so that all validate the same network, and log left-out batches."""
        for network in self.toolbox.networks:
            self.processes.broadcast_tensors(plain_network(network).buffers())
        batch, accumulate = self.current().progress.batch, self.settings.accumulate
        if (rest := batch % accumulate) and batch != length(self.loaders.training):
            self.reporter.log_once(
                f"{WARNING}the last batches of each epoch are skipped if they are fewer than accumulate={accumulate}, "
                f"here {rest}: the training loader has no length"
            )
        attachment = attachment_of(self.toolbox.model)
        if attachment is not None and attachment.compile_failure is not None:
            self.reporter.log(f"The network could not be compiled and runs uncompiled: {attachment.compile_failure}")
            attachment.compile_failure = None

    def validation_is_due(self) -> bool:
        """Return whether this epoch ends with a validation."""
        experiment = self.current()
        if self.loaders.validation is None:
            return False
        if (experiment.progress.epoch + 1) % self.settings.validate_every == 0:
            return True  # and the time left afterwards decides whether there is another epoch
        return self.processes.broadcast(experiment.ends_with_this_epoch())

    def stopping_validation(self) -> Callable[[], None]:
        """Return a function to call after each validated case, which stops the run if a signal asked for it.

        The run is saved in its state before the validation. Several processes are at different cases: they finish the
        validation, and `finish_epoch` stops the run.
        """
        history = self.current().history
        recorded, generators = history.mark(), self.data.captured()

        def stop_if_asked() -> None:
            self.reporter.report_saved_epoch(wait=False)
            if self.stop.is_pending and self.processes.world_size == 1:
                history.rollback(recorded)
                generators.restore(self.data.own)
                self._save_and_stop(save=True, stop=True)

        return stop_if_asked

    def finish_epoch(self, score: float | None) -> None:
        """Start saving the epoch; its score is None if it was not validated.

        The observers are notified once the epoch is on disk, while the next one is trained.
        """
        experiment, processes = self.current(), self.processes
        if processes.world_size > 1 and not experiment.progress.batch:
            self.reporter.log_once(
                f"{WARNING}{self.callbacks.name}.train_epoch does not call super().train_epoch(), which averages the "
                f"gradients: unless it does so itself, each of the {processes.world_size} processes trains "
                "independently"
            )
        self.reporter.report_saved_epoch(wait=True)
        experiment.history.absorb(processes.all_gather(experiment.history.pending()))
        improved = experiment.finish_epoch(score)
        if processes.world_size > 1:  # all use the clock of the first one, which decides how many epochs are left
            experiment.load_clock_state(processes.broadcast(experiment.clock_state()))
        self.data.epoch_start = None
        end_in_time(self.toolbox.scheduler, experiment, self.loaders.training, processes)
        step_after_epoch(
            self.toolbox.scheduler,
            experiment.history.metrics(),
            epoch=experiment.progress.epoch,
            score=score,
            validates=self.loaders.validation is not None,
        )
        is_best = improved or experiment.progress.best_epoch == 0  # the newest, until there is a score
        experiment.save_epoch(self._weights(), self._state(), score=score, is_best=is_best)
        self._save_timer.restart(0)
        validated = None if score is None else self.validations.gathered()
        self.reporter.unreported = experiment.epoch_finished(score, self.validations.preview, validated)
        (stop,) = processes.all_reduce_any([self.stop.is_pending])
        if stop and not experiment.is_complete:
            self.reporter.report_saved_epoch(wait=True)
            self.stop.obey()

    def _save_and_stop(self, *, save: bool, stop: bool) -> None:
        if save or stop:
            self.reporter.report_saved_epoch(wait=True)
            self._save_point()
            self._save_timer.restart(self.current().progress.batch)
        self.reporter.report_saved_epoch(wait=stop)
        if stop:
            self.stop.obey()

    # What is saved

    def current(self) -> Experiment:
        """Return the experiment.

        Raises:
            ExperimentError: If the run has none yet.
        """
        if self.experiment is None:
            raise ExperimentError(f"this {self.callbacks.name} has no experiment yet: call train() first")
        return self.experiment

    def _weights(self) -> RunWeights:
        return weights_of(self.toolbox, self.validations.scored)

    def _save_point(self) -> None:
        self.current().save_point(self._weights(), self._state())

    def _state(self) -> TrainerState:
        """Return what a resumed run needs in addition to the weights.

        All processes take part: each has its own random numbers and, within an epoch, its own part of the metrics.

        Raises:
            BadInputError: If the state of the optimizer, schedule, criterion or trainer cannot be saved.
        """
        epoch_start, experiment = self.data.epoch_start, self.experiment
        own = {
            "generators": self.data.captured().state_dict(),
            "epoch_generators": None if epoch_start is None else epoch_start.state_dict(),
            "pending": {} if experiment is None else experiment.history.pending(),
            "gradients": None if self._gradients is None else self._gradients.state_dict(),
        }
        state = state_of(
            self.toolbox,
            scored=self.validations.scored,
            optimizer=whole_state(self.toolbox.optimizer, self.processes),
            schedule_epochs=self._schedule_epochs,
            scaler=self.equipment.scaler.state_dict(),
            extra=self.callbacks.get_extra_state(),
            processes=self.processes.all_gather(own),
            trainer=self.callbacks.name,
        )
        attributes = self.callbacks.attributes()
        if experiment is not None and (names := unsaved_parts(attributes, self.toolbox, self.loaders, state)):
            self.reporter.log_once(
                f"Not saved with the run, and created anew when it is resumed: {', '.join(names)}; return their "
                "states from get_extra_state, and load them in set_extra_state"
            )
        return state
