from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

from candy_monai.experiment.events import EpochFinished, MessageLogged, RunInterrupted
from candy_monai.experiment.settings import TrainSettings
from candy_monai.observers.base import Observer
from candy_monai.training.loaders import Loaders
from candy_monai.training.reporting import Reporter, caveats, own_observers
from tests.events import epoch_finished
from tests.toys import loaders


@dataclass
class _Log:
    """Stands for an experiment's folder."""

    lines: list[str] = field(default_factory=list)

    def log(self, msg):
        self.lines.append(msg)
        return msg


class _Screen(Observer):
    def __init__(self):
        self.shown = []

    def on_message_logged(self, event: MessageLogged):
        self.shown.append(event.line)


def _reporter(messages=()):
    reporter, screen = Reporter(messages), _Screen()
    reporter.observe([screen])
    reporter.experiment = _Log()
    return reporter, reporter.experiment.lines, screen.shown


def test_messages_wait_for_the_folder_and_keep_their_order():
    reporter = Reporter([("before", True)])
    reporter.log("while it is built")
    reporter.experiment = _Log()
    reporter.log("first")
    reporter.log_waiting()
    assert reporter.experiment.lines == ["first", "before", "while it is built"]


def test_what_is_not_for_the_screen_is_in_the_log_alone():
    reporter, lines, shown = _reporter()
    reporter.log("both")
    reporter.log("log", on_screen=False)
    assert (lines, shown) == (["both", "log"], ["both"])


def test_a_message_that_is_for_once_is_said_once():
    reporter, lines, _ = _reporter()
    for _ in range(2):
        reporter.log_once("once")
    assert lines == ["once"]


def test_a_report_that_cannot_be_written_is_no_error():
    reporter, _, shown = _reporter()
    reporter.experiment.log = None
    reporter.report("lost")
    assert shown == []


def test_the_library_watches_with_as_much_as_was_asked_for():
    few = TrainSettings(num_epochs=1, val_score_prediction=False, save_preview=False)
    observers = own_observers(few, print, console=False)
    assert [type(each).__name__ for each in observers] == ["BackgroundObserver"]
    more = own_observers(TrainSettings(num_epochs=1), print, console=True)
    assert len(more) == 3
    for each in (*observers, *more):
        each.close()


def test_a_run_without_validation_or_with_a_time_limit_says_what_it_cannot_do():
    training, validation = loaders()
    assert list(caveats(TrainSettings(num_epochs=1), Loaders(training, validation), None)) == []
    said = "\n".join(caveats(TrainSettings(num_epochs=1, time_limit_s=60.0), Loaders(training, None), None))
    assert "No validation" in said
    assert "its learning rate schedule follows the elapsed time" in said


@dataclass
class _Run(_Log):
    """Stands for an experiment whose last epoch is being saved."""

    is_saved: bool = False
    progress: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(epoch=2))

    def wait_until_saved(self):
        self.is_saved = True


class _Told(Observer):
    def __init__(self):
        self.events = []

    def receive(self, event):
        self.events.append(type(event))


def test_an_epoch_is_told_once_and_only_when_it_is_on_disk():
    reporter, told = Reporter(), _Told()
    reporter.observe([told])
    reporter.experiment, reporter.unreported = _Run(), epoch_finished(2, metrics={"loss": [1.0, 0.5]})
    reporter.report_saved_epoch(wait=False)
    assert told.events == []
    reporter.report_saved_epoch(wait=True)
    reporter.report_saved_epoch(wait=True)
    assert told.events == [EpochFinished]
    assert reporter.experiment.lines == ["Epoch 2: loss 0.5"]


def test_an_interruption_is_told_after_the_epoch_that_is_on_disk_with_what_to_do():
    reporter, told = Reporter(), _Told()
    reporter.observe([told])
    reporter.experiment, reporter.unreported = _Run(), epoch_finished(2, metrics={"loss": [1.0, 0.5]})
    error = RuntimeError("applying transform Flip")
    error.__cause__ = ValueError("no more")
    reporter.report_interruption(error, hints=["go on"])
    said = "Interrupted in epoch 3: RuntimeError: applying transform Flip, caused by ValueError: no more"
    assert reporter.experiment.lines[-2:] == [said, "go on"]
    assert [event for event in told.events if event is not MessageLogged] == [EpochFinished, RunInterrupted]
