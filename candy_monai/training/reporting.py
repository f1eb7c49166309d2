"""The log of a run, the events that its observers receive, and its messages at the start and at the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

import torch

from candy_monai.errors import WARNING, causes_of
from candy_monai.experiment.events import EpochFinished, Event, MessageLogged, Preview, RunInterrupted
from candy_monai.experiment.experiment import Experiment
from candy_monai.experiment.history import last_epoch_as_text
from candy_monai.experiment.settings import TrainSettings
from candy_monai.observers.base import BackgroundObserver, Observer, ObserverGroup
from candy_monai.observers.forecast import ForecastObserver, Log
from candy_monai.processes import Processes
from candy_monai.training.loaders import Loaders, length, why_not_exact
from candy_monai.training.schedule import decays_too_early
from candy_monai.training.validation import mean_of_cases

RENDERING_PATIENCE_S = 60.0

Message = tuple[str, bool]
"""A text, and whether it is also printed."""


class Reporter:
    """A run's log and its observers.

    Attributes:
        experiment: The run whose log is written; while it is None, messages are held back.
        unreported: The last epoch, until the observers are notified of it.
        class_names: The names of classes or regions, which the log abbreviates if there are many.
    """

    def __init__(self, messages: Sequence[Message] = ()) -> None:
        self.experiment: Experiment | None = None
        self.unreported: EpochFinished | None = None
        self.class_names: tuple[str, ...] = ()
        self._waiting = list(messages)
        self._logged_once: set[str] = set()
        self._observers = ObserverGroup((), self.report)

    def observe(self, observers: Sequence[Observer]) -> None:
        """Send events to these observers from now on."""
        self._observers = ObserverGroup(observers, self.report)

    def close(self) -> None:
        """Close the observers, which finish pending work."""
        self._observers.close()

    def log(self, msg: str, *, on_screen: bool = True) -> None:
        """Write a message to the log. Messages from before the folder exists are held back for `log_waiting`."""
        if self.experiment is None:
            self._waiting.append((msg, on_screen))
            return
        line = self.experiment.log(msg)
        if on_screen:
            self.notify(MessageLogged(line, msg))

    def log_once(self, msg: str, *, on_screen: bool = True) -> None:
        """Log a message unless this run has already logged it."""
        if msg not in self._logged_once:
            self._logged_once.add(msg)
            self.log(msg, on_screen=on_screen)

    def log_all(self, messages: Iterable[str]) -> None:
        """Log messages in order."""
        for msg in messages:
            self.log(msg)

    def log_waiting(self) -> None:
        """Log the messages from before the folder existed."""
        waiting, self._waiting = self._waiting, []
        for msg, on_screen in waiting:
            self.log(msg, on_screen=on_screen)

    def report(self, msg: str, *, on_screen: bool = True) -> None:
        """Log an observer's message, also from another thread or after the run; errors are ignored."""
        with suppress(Exception):  # the folder may be gone
            self.log(msg, on_screen=on_screen)

    def notify(self, event: Event) -> None:
        """Send an event to the observers."""
        self._observers.receive(event)

    def report_saved_epoch(self, *, wait: bool) -> None:
        """Notify the observers of the last epoch once it is on disk, so that a crash cannot invalidate it.

        Without ``wait`` nothing is done if it is not.

        Raises:
            RunFailedError: If it could not be written.
        """
        experiment = self.experiment
        if experiment is None or not (wait or experiment.is_saved):
            return
        experiment.wait_until_saved()
        event, self.unreported = self.unreported, None
        if event is not None:
            text = last_epoch_as_text(event.metrics, class_names=self.class_names)
            self.log(f"Epoch {event.epoch}: {text}", on_screen=False)
            self.notify(event)

    def report_interruption(self, error: BaseException, *, what: str | None = None, hints: Iterable[str] = ()) -> None:
        """Notify the observers of what is on disk, log the cause of the early end, and notify them of it.

        Args:
            error: The cause.
            what: The same as text; by default its type and its message.
            hints: Further lines for the log, such as how to resume.
        """
        with suppress(Exception):  # a report that fails must not hide the error
            self.report_saved_epoch(wait=True)
        if self.experiment is not None:
            said = ", caused by ".join(map(_in_words, (error, *causes_of(error)))) if what is None else what
            with suppress(Exception):
                self.log(f"Interrupted in epoch {self.experiment.progress.epoch + 1}: {said}")
                self.log_all([*getattr(error, "__notes__", ()), *hints])
        self.notify(RunInterrupted(error))


def own_observers(settings: TrainSettings, report: Log, *, console: bool, curves: bool = True) -> list[Observer]:
    """Return the library's observers: console, forecast and pictures; the pictures are drawn in a thread."""
    from candy_monai.observers.pictures import CurvesObserver, PreviewObserver

    observers: list[Observer] = []
    if console:
        from candy_monai.observers.screen import screen_observer

        observers.append(screen_observer())
    if settings.val_score_prediction:
        observers.append(ForecastObserver(report))
    pictures: list[Observer] = [CurvesObserver()] if curves else []
    if settings.save_preview:
        pictures.append(PreviewObserver(_draw))
    if settings.save_report:
        from candy_monai.report.observer import ReportObserver

        pictures.append(ReportObserver())
    drawing = ObserverGroup(pictures, report)
    return [*observers, BackgroundObserver(drawing, patience_s=RENDERING_PATIENCE_S, newest_epoch_only=True)]


def words_at_start(
    experiment: Experiment, trainer: str, device: torch.device, processes: Processes, *, is_resumed: bool
) -> Iterator[str]:
    """Yield the log messages for the start or the continuation of a run."""
    where, count = f"{device}", processes.world_size
    if count > 1:
        where = f"{count} processes, the first on {where}"
    settings, progress = experiment.settings, experiment.progress
    extent = f"{settings.num_epochs} epoch{'s' * (settings.num_epochs != 1)}"
    if settings.time_limit_s is not None:
        extent = f"as many epochs as fit into {settings.time_limit_s:.0f} s (at most {settings.num_epochs})"
    yield f"Experiment {experiment.experiment_id} in {experiment.folder}"
    yield f"{trainer} on {where}, {extent}, seed {settings.seed}"
    if is_resumed:
        within = f", batch {progress.batch}" if progress.batch else ""
        yield f"Continued after epoch {progress.epoch}{within}"
    elif settings.note:
        yield f"Note: {settings.note}"


def caveats(settings: TrainSettings, loaders: Loaders, scheduler: object) -> Iterator[str]:
    """Yield the log messages about limitations of a run, for its start."""
    if problem := decays_too_early(scheduler, settings.num_epochs, length(loaders.training)):
        yield f"{WARNING}{problem}"
    if loaders.validation is None:
        yield "No validation: the last weights are saved as the best, and there is no score, forecast or early stopping"
    timed = settings.time_limit_s is not None
    if reason := "its learning rate schedule follows the elapsed time" if timed else why_not_exact(loaders.training):
        yield f"If this run is interrupted, the resumed run may give other numbers: {reason}"


def words_at_end(experiment: Experiment) -> Iterator[str]:
    """Yield the log messages for the end of a run: the reason for an early end, and the best score."""
    progress = experiment.progress
    if experiment.early_stopping.triggered:
        yield f"Early stopping triggered because {experiment.early_stopping.reason}"
    elif experiment.is_out_of_time:
        yield f"The time is up after epoch {progress.epoch}: another would exceed the time limit"
    if progress.best_epoch:
        best = f"Best validation score {progress.best_score:.4f} at epoch {progress.best_epoch}"
        if experiment.best_num_validated is not None:
            best += f", {mean_of_cases(experiment.best_num_validated, experiment.best_standard_error)}"
        yield best


def _in_words(error: BaseException) -> str:
    return ": ".join(filter(None, (type(error).__name__, str(error))))


def _draw(preview: Preview) -> None:
    if preview.draw is not None:
        preview.draw()
