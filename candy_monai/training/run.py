"""One run: everything that changes while it goes on, and all that surrounds its steps.

`TrainingRun` never sees the trainer; what it needs to ask is in `Callbacks`. Its life: made (settings decided, loaders
shared out), `equip` (toolbox), `begin` (folder published or taken up, observers told), then for each epoch
`begin_epoch`, `batches`, and for each optimizer step `agree` and `finish_step`, then `finish_epoch`; `conclude`.
`lasting` surrounds all of it and releases in the end what the run holds. What happens between these calls is in
``trainer.py``; what is saved is put together in ``resume.py``.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.data import SmartCacheDataset
from torch import optim

from candy_monai.aliases import Scalar
from candy_monai.attachment import attachment_of, tensors_in
from candy_monai.errors import ExperimentError
from candy_monai.experiment.checkpoints import WeightsKind
from candy_monai.experiment.description import ExperimentDescription
from candy_monai.experiment.events import EpochFinished, Event, MessageLogged, Preview, RunInterrupted
from candy_monai.experiment.experiment import Experiment
from candy_monai.experiment.history import column_beside, last_epoch_as_text
from candy_monai.experiment.serialization import plain
from candy_monai.experiment.settings import SaveInterval, TrainSettings
from candy_monai.experiment.state import RunWeights, TrainerState
from candy_monai.forecasting.curve import ScoreRange
from candy_monai.network import choose_precision, plain_network
from candy_monai.observers.base import BackgroundObserver, Observer, ObserverGroup
from candy_monai.observers.forecast import ForecastObserver
from candy_monai.own_generators import OwnGenerators
from candy_monai.processes import Processes
from candy_monai.seeding import GeneratorStates, draw_seed, set_seed
from candy_monai.training.description import run_started
from candy_monai.training.gradients import trained_parameters
from candy_monai.training.loaders import Loaders, batches_from, length, why_not_exact
from candy_monai.training.resume import SavedRun, unsaved_parts, weights_of
from candy_monai.training.schedule import step_after_epoch
from candy_monai.training.signals import Interrupted, StopRequest
from candy_monai.training.toolbox import Equipment, TrainerToolbox
from candy_monai.training.validation import PaddedParts, mean_of_cases

RENDERING_PATIENCE_S = 60.0

Message = tuple[str, bool]
"""A text, and whether it is also for the screen."""


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """What a run asks of whoever trains it.

    Attributes:
        name: The trainer's name.
        build_scheduler: Builds the schedule for a number of epochs.
        get_extra_state: Returns what else is to be saved.
        set_extra_state: Takes up what was saved so.
        attributes: Returns the objects whose random generators are saved, and whose states may not be.
        how_to_resume: Returns what to type to go on with the run in a folder.
    """

    name: str
    build_scheduler: Callable[[optim.Optimizer, int], optim.lr_scheduler.LRScheduler]
    get_extra_state: Callable[[], dict[str, Any]] = dict
    set_extra_state: Callable[[dict[str, Any]], None] = lambda _: None
    attributes: Callable[[], Mapping[str, object]] = dict
    how_to_resume: Callable[[Path], str] = str


class Agreement(NamedTuple):
    """What all processes do after the batches of an optimizer step.

    Attributes:
        usable: Whether the optimizer steps.
        save: Whether the run is saved.
        stop: Whether it ends.
        cut: Whether the epoch ends here, since the time is up.
    """

    usable: bool
    save: bool
    stop: bool
    cut: bool


class TrainingRun:
    """The state of one run of `Trainer.train`.

    Args:
        settings: What ``train`` was told.
        loaders: The loaders of all samples.
        callbacks: What the run asks of whoever trains it.
        device: Where the networks are.
        processes: Those that train together, connected; None for this one alone.
        messages: What was logged before.
        rehearses: Whether nothing of this run is kept, as of steps that are only timed.

    Attributes:
        settings: With what was left open decided: the seed, the precision.
        loaders: Those of this process's share of the samples.
        experiment: The run on disk; None before `begin`.
        generators: The user's own random generators.
        stop: Whether a signal asked the run to end.
        stream: The batches of a loader that can be read only once, from the first one on.
        preview: The case to look at of the last validation.
        padded_parts: Pads what ``validate_case`` calls; None outside of a validation.
        scored: Whether validation scores the average or the raw weights.
        is_over: Whether the run has ended, in whatever way.

    Raises:
        BadInputError: If a loader yields nothing or cannot be shared out.
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
        self.loaders = loaders.shared(self.processes)
        self.device = device
        self.callbacks = callbacks
        seed = self.processes.broadcast(draw_seed() if settings.seed is None else settings.seed)
        set_seed(seed, deterministic=settings.deterministic)
        self.settings = dataclasses.replace(settings, seed=seed, amp=choose_precision(settings.amp, device))
        self._equipment: Equipment | None = None
        self.experiment: Experiment | None = None
        self.generators = OwnGenerators()
        self.stop = StopRequest()
        self.stream: Iterator[object] | None = None
        self.preview: Preview | None = None
        self.padded_parts: PaddedParts | None = None
        self.scored: WeightsKind = "raw"
        self.is_over = False
        self._rehearses = rehearses
        self._messages = list(messages)
        self._said: set[str] = set()
        self._observers = ObserverGroup((), self.report)
        self._has_begun = False
        self._console = False
        self._schedule_epochs = self.settings.num_epochs
        self._epoch_generators: GeneratorStates | None = None
        self._saved_at = (0, 0.0)
        self._untold: EpochFinished | None = None
        self._closing = ExitStack()

    # How a run begins and ends

    def equip(self, equipment: Equipment) -> None:
        """Take the toolbox and what is around it, and find the user's random generators."""
        self._equipment = equipment
        self._closing.callback(equipment.close)
        toolbox = equipment.toolbox
        self.scored = "raw" if toolbox.ema is None else "ema"
        self.generators = OwnGenerators.of(
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
        files: Mapping[str, str] | None = None,
        saved: SavedRun | None = None,
        score_range: ScoreRange | None = None,
        observers: Callable[[], Sequence[Observer]] = tuple,
        console: bool = False,
    ) -> None:
        """Publish a new experiment folder, or take up that of a saved run, and tell those who watch.

        Args:
            description: What ``experiment.json`` says of the run.
            parent: The folder of this trainer's experiments.
            files: More texts that a new folder is born with, by their files' names.
            saved: The run to go on with; None for a new one.
            score_range: The least and the largest score that there can be.
            observers: Makes more observers of the run.
            console: Whether to report on the screen.

        Raises:
            ExperimentError: If the saved run is trained elsewhere, or differs from this one.
        """
        generators = (
            self._publish(parent, description, files or {}) if saved is None else self._take_up(saved, description)
        )
        run = self.current()
        self._closing.callback(run.close)
        run.score_range = score_range
        self._console = console
        if self.processes.is_first:
            self._observers = self._watched_by(observers())
            self._closing.callback(self._observers.close)
        self._announce(run, is_resumed=saved is not None)
        self.notify(run_started(run, self.callbacks.name, self.equipment))
        # The last before the first step: what a process imports for the first time may draw, too.
        generators.restore(self.generators)
        if saved is not None and saved.schedule is not None:
            self._save_point()
            run.describe(description)
        self._saved_at = (run.progress.batch, time.monotonic())
        self._has_begun = True

    def conclude(self) -> None:
        """Tell those who watch that the run has come to its end."""
        run = self.current()
        self._tell_of_saved_epoch(wait=True)
        if run.early_stopping.triggered:
            self.log(f"Early stopping triggered because {run.early_stopping.reason}")
        elif run.is_out_of_time:
            self.log(f"The time is up after epoch {run.progress.epoch}: another would exceed the time limit")
        if run.progress.best_epoch:
            best = f"Best validation score {run.progress.best_score:.4f} at epoch {run.progress.best_epoch}"
            if run.best_num_validated is not None:
                best += f", {mean_of_cases(run.best_num_validated, run.best_standard_error)}"
            self.log(best)
        self.notify(run.finished())

    @contextmanager
    def lasting(self) -> Iterator[None]:
        """Release what the run holds when a block ends; if it fails, tell those who watch."""
        try:
            with self._closing:
                if isinstance(dataset := self.loaders.training.dataset, SmartCacheDataset):
                    self._closing.callback(dataset.shutdown)  # the thread that loads its next cases
                try:
                    yield
                except BaseException as error:
                    if self._has_begun:
                        self._tell_of_failure(error)
                    raise
        finally:
            self._equipment = self.stream = self._untold = self.preview = None
            self.generators = OwnGenerators()
            self.is_over = True

    def _tell_of_failure(self, error: BaseException) -> None:
        run = self.current()
        with suppress(Exception):  # a report that fails must not hide the error
            self._tell_of_saved_epoch(wait=True)
        with suppress(Exception):
            kind = "" if isinstance(error, Interrupted) else type(error).__name__
            what = ": ".join(filter(None, (kind, str(error))))
            self.log(f"Interrupted in epoch {run.progress.epoch + 1}: {what}")
            if isinstance(error, Interrupted) and self.processes.is_first:
                self.log(how := self.callbacks.how_to_resume(run.folder))
                if not self._console:  # the program may end with nothing on the screen but this
                    print(how, file=sys.stderr)
        self.notify(RunInterrupted(error))

    def _publish(self, parent: Path, description: ExperimentDescription, files: Mapping[str, str]) -> GeneratorStates:
        """Publish a new experiment and return the states of the random generators that it begins with."""
        for network in self.toolbox.networks:
            self.processes.share(tensors_in(plain_network(network).state_dict()))
        if not self.processes.is_first:  # the same dropout in all processes would be no help
            assert self.settings.seed is not None
            seed = (self.settings.seed + self.processes.rank) % 2**32
            set_seed(seed, deterministic=self.settings.deterministic)
        generators, state = self._captured(), self._state()
        folder = None
        if self.processes.is_first:
            folder = Experiment.publish(parent, self.settings, description, self._weights(), state, files=files)
        folder = self.processes.broadcast(folder)
        assert folder is not None
        self.experiment = Experiment(folder, self.settings, writes=self.processes.is_first)
        return generators

    def _take_up(self, saved: SavedRun, description: ExperimentDescription) -> GeneratorStates:
        """Take a saved run up and return the states of the random generators that it goes on with."""
        saved.refuse_differences(description)
        toolbox = self.toolbox
        reopened = saved.reopened(
            toolbox, lambda epochs: self.callbacks.build_scheduler(toolbox.optimizer, epochs), self.processes
        )
        self.experiment, self.settings, self.stream = reopened.run, reopened.run.settings, None
        self.scored, self._schedule_epochs = reopened.scored, reopened.schedule_epochs
        self._epoch_generators = reopened.epoch_generators
        with reopened.run.closed_on_failure():
            self.equipment.scaler.load_state_dict(dict(reopened.scaler))
            if reopened.extra:
                self.callbacks.set_extra_state(reopened.extra)
        return reopened.generators

    def _announce(self, run: Experiment, *, is_resumed: bool) -> None:
        settings, count = run.settings, self.processes.count
        where = f"{self.device}" if count == 1 else f"{count} processes, the first on {self.device}"
        extent = f"{settings.num_epochs} epoch{'s' * (settings.num_epochs != 1)}"
        if settings.time_limit_s is not None:
            extent = f"as many epochs as {settings.time_limit_s:.0f} s hold ({settings.num_epochs} at most)"
        self.log(f"Experiment {run.experiment_id} in {run.folder}")
        self.log(f"{self.callbacks.name} on {where}, {extent}, seed {settings.seed}")
        if is_resumed:
            within = f", batch {run.progress.batch}" if run.progress.batch else ""
            self.log(f"Continued after epoch {run.progress.epoch}{within}")
        elif settings.note:
            self.log(f"Note: {settings.note}")
        messages, self._messages = self._messages, []
        for message, on_screen in messages:
            self.log(message, on_screen=on_screen)
        if self.loaders.validation is None:
            self.log("No validation: the best weights are the last, and there is no score, forecast or early stop")
        timed = settings.time_limit_s is not None
        if reason := "its schedule follows the clock" if timed else why_not_exact(self.loaders.training):
            self.log(f"If this run is interrupted, going on may not give the same numbers: {reason}")

    def _watched_by(self, others: Sequence[Observer]) -> ObserverGroup:
        """Return those who watch: the console at once, pictures on a thread of their own, and the others."""
        from candy_monai.observers.pictures import CurvesObserver, PreviewObserver

        pictures: list[Observer] = [CurvesObserver()]
        if self.settings.save_preview:
            pictures.append(PreviewObserver(_draw))
        group: list[Observer] = []
        if self._console:
            from candy_monai.observers.notebook import screen_observer

            group.append(screen_observer())
        if self.settings.val_score_prediction:
            group.append(ForecastObserver(self.report))
        drawing = ObserverGroup(pictures, self.report)
        group.append(BackgroundObserver(drawing, patience_s=RENDERING_PATIENCE_S, newest_epoch_only=True))
        return ObserverGroup([*group, *others], self.report)

    # What is logged, recorded and told

    def log(self, msg: str, *, on_screen: bool = True) -> None:
        """Write a message to the log; what is logged before there is a folder is written when there is."""
        if self.experiment is None:
            self._messages.append((msg, on_screen))
            return
        line = self.experiment.log(msg)
        if on_screen:
            self.notify(MessageLogged(line))

    def report(self, msg: str, *, on_screen: bool = True) -> None:
        """Log a message of an observer, which may come from another thread, and when the run is over."""
        with suppress(Exception):  # the folder may be gone
            self.log(msg, on_screen=on_screen)

    def say_once(self, message: str, *, on_screen: bool = True) -> None:
        """Log a message once in a run."""
        if message not in self._said:
            self._said.add(message)
            self.log(message, on_screen=on_screen)

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
            message = f"The metric {metric!r} is kept as {column!r}: the run has a column of this name"
            self.say_once(message, on_screen=False)

    def notify(self, event: Event) -> None:
        """Tell those who watch."""
        self._observers.receive(event)

    # Epochs and steps

    @property
    def equipment(self) -> Equipment:
        """The toolbox and what is around it, while the run lasts.

        Raises:
            ExperimentError: Before `equip` and afterwards.
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
        """Whether no epoch is left."""
        return self.current().is_complete

    def begin_epoch(self) -> None:
        """Start the epoch's clock and note its learning rate."""
        self.current().begin_epoch(self.toolbox.optimizer.param_groups[0]["lr"])

    def batches(self) -> Iterator[object]:
        """Return the batches that are left of the epoch."""
        progress = self.current().progress
        if not progress.batch:
            self._epoch_generators = self._captured()
        stream, self.stream = self.stream, None
        if stream is not None:
            return stream
        return batches_from(
            self.loaders.training,
            epoch=progress.epoch,
            first=progress.batch,
            epoch_start=self._epoch_generators,
            own=self.generators,
        )

    def agree(self, num_batches: int, *, usable: bool) -> Agreement:
        """Ask all processes what to do after the batches of a step, and average the gradients of those that step.

        Args:
            num_batches: Batches that the gradients come from.
            usable: Whether this process's gradients can be stepped by.
        """
        run, (batch, moment) = self.current(), self._saved_at
        interval = self.settings.save_every
        is_over = interval is not None and SaveInterval.parse(interval).is_over(
            steps=run.progress.batch - batch, seconds=time.monotonic() - moment
        )
        run.step_done(num_batches=num_batches)
        flags = [not usable, is_over, self.stop.is_pending, run.left_s <= 0]
        if self.processes.count > 1:
            parameters = trained_parameters(self.toolbox)
            flags = self.processes.any_of(flags + [parameter.grad is not None for parameter in parameters])
            taking_part = [parameter for parameter, has in zip(parameters, flags[4:], strict=True) if has]
            for parameter in taking_part:
                if parameter.grad is None:  # without a part in this process's passes only
                    parameter.grad = torch.zeros_like(parameter)
            self.processes.average([parameter.grad for parameter in taking_part if parameter.grad is not None])
        return Agreement(usable=not flags[0], save=flags[1], stop=flags[2], cut=flags[3])

    def finish_step(self, agreed: Agreement) -> None:
        """Bring the schedule to the time that is left; save the run within its epoch, and end it, as it was agreed."""
        self._keep_to_the_time()
        self._save_and_stop(save=agreed.save, stop=agreed.stop)

    def finish_training(self) -> None:
        """Let every process score the same network: batch statistics are those of the first."""
        for network in self.toolbox.networks:
            self.processes.share(plain_network(network).buffers())
        attachment = attachment_of(self.toolbox.model)
        if attachment is not None and attachment.compile_failure is not None:
            self.log(f"The network could not be compiled and runs as it is: {attachment.compile_failure}")
            attachment.compile_failure = None

    def validation_is_due(self) -> bool:
        """Return whether the epoch that was trained is validated."""
        run = self.current()
        is_last = self.processes.broadcast(run.ends_with_this_epoch())
        is_its_turn = (run.progress.epoch + 1) % self.settings.validate_every == 0
        return self.loaders.validation is not None and (is_its_turn or is_last)

    def stopping_validation(self) -> Callable[[], None]:
        """Return what to call after each case of a validation that begins now.

        It ends the run if a signal asked for it, saved as it is before the validation. With several processes, which
        are not at the same case, it goes on to the validation's end.
        """
        history = self.current().history
        recorded, generators = history.mark(), self._captured()

        def stop_if_asked() -> None:
            self._tell_of_saved_epoch(wait=False)
            if self.stop.is_pending and self.processes.count == 1:
                history.roll_back(recorded)
                generators.restore(self.generators)
                self._save_and_stop(save=True, stop=True)

        return stop_if_asked

    def note_scored(self, called: Sequence[bool]) -> None:
        """Note which weights the validation scored: those are saved as the best.

        Args:
            called: Whether the model was called in this process, and whether the average was.
        """
        raw, averaged = self.processes.any_of(called)
        if self.toolbox.ema is None:
            return
        self.scored = "raw" if raw and not averaged else "ema"
        if raw == averaged:
            what = "both toolbox.model and toolbox.ema" if raw else "neither toolbox.model nor toolbox.ema"
            self.say_once(f"validate_case called {what}: checkpoint_best.pth holds the average (toolbox.ema)")
        elif raw:
            self.say_once("validate_case scores toolbox.model: checkpoint_best.pth holds its weights, not the average")

    def finish_epoch(self, score: float | None) -> None:
        """Begin to save the epoch; it is told when it is saved, while the next one is trained.

        Args:
            score: Its validation score; None if it was not validated.
        """
        run, processes = self.current(), self.processes
        self._tell_of_saved_epoch(wait=True)
        run.history.absorb(processes.gathered(run.history.pending()))
        improved = run.finish_epoch(score)
        if processes.count > 1:  # all go by the first one's clock, which decides how many epochs are left
            run.load_clock_state(processes.broadcast(run.clock_state()))
        self._epoch_generators = None
        self._keep_to_the_time()
        step_after_epoch(
            self.toolbox.scheduler,
            run.history.metrics(),
            epoch=run.progress.epoch,
            score=score,
            validates=self.loaders.validation is not None,
        )
        is_best = improved or run.progress.best_epoch == 0  # until there is a score: the newest
        run.save_epoch(self._weights(), self._state(), score=score, is_best=is_best)
        self._saved_at = (0, time.monotonic())
        self._untold = run.epoch_finished(score, self.preview)
        (stop,) = processes.any_of([self.stop.is_pending])
        if stop and not run.is_complete:
            self._tell_of_saved_epoch(wait=True)
            self.stop.obey()

    def _keep_to_the_time(self) -> None:
        """Let the schedule end when the time does; of several processes by the first one's clock, after an epoch."""
        run = self.current()
        end_in = getattr(self.toolbox.scheduler, "end_in", None)
        timed = self.settings.time_limit_s is not None and not (self.processes.count > 1 and run.progress.batch)
        if not timed or end_in is None:
            return
        steps_an_epoch = length(self.loaders.training)
        epochs_left = run.expected_epochs() - run.progress.epoch
        # Where much of the time is not in the steps, the whole epochs that are expected say more.
        by_epochs = None if steps_an_epoch is None else epochs_left * steps_an_epoch - run.progress.batch
        known = [number for number in (run.batches_left, by_epochs) if number is not None]
        num_steps = self.processes.broadcast(min(known, default=0))
        if num_steps > 0:
            end_in(num_steps)

    def _save_and_stop(self, *, save: bool, stop: bool) -> None:
        if save or stop:
            self._tell_of_saved_epoch(wait=True)
            self._save_point()
            self._saved_at = (self.current().progress.batch, time.monotonic())
        self._tell_of_saved_epoch(wait=stop)
        if stop:
            self.stop.obey()

    def _tell_of_saved_epoch(self, *, wait: bool) -> None:
        """Tell those who watch of the last epoch once it is on disk: nothing is reported that a crash could take back.

        Args:
            wait: Wait for what is being written; otherwise it is said now only if it is there already.

        Raises:
            RunFailedError: If it could not be written.
        """
        run = self.current()
        if not (wait or run.is_saved):
            return
        run.wait_until_saved()
        event, self._untold = self._untold, None
        if event is not None:
            self.log(f"Epoch {event.epoch}: {last_epoch_as_text(event.metrics)}", on_screen=False)
            self.notify(event)

    # What is saved

    def current(self) -> Experiment:
        """Return the experiment.

        Raises:
            ExperimentError: If the run has none yet.
        """
        if self.experiment is None:
            raise ExperimentError(f"this {self.callbacks.name} has no experiment yet: call train() first")
        return self.experiment

    def _captured(self) -> GeneratorStates:
        return GeneratorStates.capture(self.generators)

    def _weights(self) -> RunWeights:
        return weights_of(self.toolbox, self.scored)

    def _save_point(self) -> None:
        self.current().save_point(self._weights(), self._state())

    def _state(self) -> TrainerState:
        """Return what a resumed run needs besides the weights.

        Every process takes part: each has its own random numbers and, within an epoch, its own part of the metrics.

        Raises:
            BadInputError: If a part of the user's own has something in its state that cannot be saved.
        """
        toolbox, epoch_start, run = self.toolbox, self._epoch_generators, self.experiment
        own = {
            "generators": self._captured().state_dict(),
            "epoch_generators": None if epoch_start is None else epoch_start.state_dict(),
            "pending": {} if run is None else run.history.pending(),
        }
        ema = None if toolbox.ema is None else toolbox.ema.state_dict()
        if ema is not None and self.scored == "ema":  # its weights are in files of their own
            ema = {name: value for name, value in ema.items() if not name.startswith("module.")}
        extra = self.callbacks.get_extra_state()
        state = TrainerState(
            optimizer=plain(toolbox.optimizer.state_dict(), "the optimizer's state", rebuilt=True),
            scheduler=plain(toolbox.scheduler.state_dict(), "the schedule's state", rebuilt=True),
            schedule_epochs=self._schedule_epochs,
            scaler=self.equipment.scaler.state_dict(),
            criterion=plain(toolbox.criterion.state_dict(), "the criterion's state", rebuilt=True),
            extra=plain(extra, f"what {self.callbacks.name}.get_extra_state returned"),
            ema=ema,
            processes=self.processes.gathered(own),
        )
        if run is not None:
            self._say_what_is_not_saved(state)
        return state

    def _say_what_is_not_saved(self, state: TrainerState) -> None:
        toolbox = self.toolbox
        parts = [*vars(toolbox).values(), plain_network(toolbox.model), *self.loaders]
        names = unsaved_parts(
            {
                f"self.{name}": value
                for name, value in self.callbacks.attributes().items()
                if not any(value is part for part in parts)
            },
            saved=[vars(state), *(plain_network(network).state_dict() for network in toolbox.networks)],
            extra=state.extra,
        )
        if names:
            self.say_once(
                f"Not saved with the run, so that a resumed one begins with new ones: {', '.join(names)}; "
                "get_extra_state can return their states, and set_extra_state take them up"
            )


def _draw(preview: Preview) -> None:
    if preview.draw is not None:
        preview.draw()
