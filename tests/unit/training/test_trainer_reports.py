import errno
import re
import threading

import pytest
import torch
from torch.utils.data import DataLoader

import candy_monai.experiment.experiment
from candy_monai.errors import RunFailedError
from candy_monai.experiment.events import EpochFinished, RunFinished, RunInterrupted, StepFinished
from candy_monai.experiment.state import load_state
from candy_monai.frontends.base import Frontend
from candy_monai.observers.base import Observer
from tests.toys import ScriptedTrainer, SmallTrainer, Squares, log_of, scripted_trainer, small_trainer


class _Listener(Observer):
    def __init__(self):
        self.events = []

    def receive(self, event):
        self.events.append(event)


def test_recorded_numbers_are_averaged_over_the_epoch(tmp_path):
    class Recording(ScriptedTrainer):
        def train_epoch(self, toolbox):
            self.record("loss", 1.0)
            self.record("loss", torch.tensor(2.0))
            self.record_all({"dice": 0.5, "iou": 0.25})

    trainer = small_trainer(tmp_path, cls=Recording)
    trainer.train(1)
    metrics = trainer.metrics()
    assert (metrics["loss"], metrics["dice"], metrics["iou"]) == ([1.5], [0.5], [0.25])


@pytest.mark.parametrize("message", ["[red]no markup[/]", "[/unbalanced", "naïve ✓", "{0} %s"])
def test_any_text_can_be_logged_verbatim_on_screen_and_in_the_file(tmp_path, capsys, message):
    class Talking(ScriptedTrainer):
        def train_epoch(self, toolbox):
            self.log(message)
            self.log("for the file only", on_screen=False)

    trainer = small_trainer(tmp_path, cls=Talking, console=True)
    trainer.train(1)
    shown = capsys.readouterr().out
    assert message in shown
    assert "for the file only" not in shown
    assert message in log_of(trainer)
    assert "for the file only" in log_of(trainer)


def test_the_metrics_table_appears_after_each_epoch(tmp_path, capsys):
    scripted_trainer(tmp_path, (0.1, 0.2), console=True).train(2)
    shown = capsys.readouterr().out
    assert shown.count("Mean Value") == 2
    assert "Span" in shown
    assert "Diff" in shown


class _Failing(SmallTrainer):
    def backward(self, images, labels, toolbox):
        if self._current().progress.epoch == 1:
            raise RuntimeError("the user's own error")
        return super().backward(images, labels, toolbox)


def test_an_error_in_the_run_reaches_the_user_the_log_and_those_who_watch(tmp_path):
    listener = _Listener()
    trainer = small_trainer(tmp_path, cls=_Failing, observers=[listener])
    with pytest.raises(RuntimeError, match="the user's own error"):
        trainer.train(5)
    assert "Interrupted in epoch 2: RuntimeError: the user's own error" in log_of(trainer)
    assert any(isinstance(event, RunInterrupted) for event in listener.events)
    assert not any(isinstance(event, RunFinished) for event in listener.events)


class _Slow(Observer):
    """Lets ``state.pt`` be written only once a step of the second epoch is made, and notes what is told when."""

    def __init__(self, monkeypatch, *, error=None):
        self.told, self._may_write, self._error = [], threading.Event(), error
        self._save = candy_monai.experiment.experiment.save_state
        monkeypatch.setattr("candy_monai.experiment.experiment.save_state", self._slowly)

    def _slowly(self, folder, state, **options):
        if state.progress.epoch:
            assert self._may_write.wait(10)
            if self._error is not None:
                raise self._error
        self._save(folder, state, **options)

    def receive(self, event):
        if isinstance(event, StepFinished) and (event.epoch, event.phase, event.done) == (2, "training", 1):
            self.told.append("step")
            self._may_write.set()
        elif isinstance(event, EpochFinished):
            self.told.append(event.epoch)


def test_an_epoch_is_told_when_it_is_on_disk_and_the_next_is_trained_meanwhile(tmp_path, monkeypatch):
    slow = _Slow(monkeypatch)
    trainer = small_trainer(tmp_path, observers=[slow])
    trainer.train(3)
    assert slow.told == ["step", 1, 2, 3]
    assert [line.split(": ")[0][-7:] for line in log_of(trainer).splitlines() if "combined loss" in line] == [
        "Epoch 1",
        "Epoch 2",
        "Epoch 3",
    ]


def test_an_epoch_that_cannot_be_written_ends_the_run_and_is_not_told(tmp_path, monkeypatch):
    slow = _Slow(monkeypatch, error=OSError(errno.ENOSPC, "No space left on device"))
    trainer = small_trainer(tmp_path, observers=[slow])
    with pytest.raises(RunFailedError, match="the disk is full"):
        trainer.train(3)
    assert slow.told == ["step"]
    assert load_state(trainer.experiment_folder()).progress.epoch == 0
    assert "Interrupted in epoch 2: RunFailedError" in log_of(trainer)


def test_an_epoch_that_was_saved_before_an_error_is_told(tmp_path, monkeypatch):
    listener = _Listener()
    with pytest.raises(RuntimeError, match="the user's own error"):
        small_trainer(tmp_path, cls=_Failing, observers=[listener]).train(5)
    kinds = [type(event) for event in listener.events if isinstance(event, EpochFinished | RunInterrupted)]
    assert kinds == [EpochFinished, RunInterrupted]


def test_an_error_inside_the_report_of_an_error_does_not_hide_the_first(tmp_path, monkeypatch):
    class BadReporter(Observer):
        def on_run_interrupted(self, event):
            raise ValueError("the reporter's error")

    trainer = small_trainer(tmp_path, cls=_Failing, observers=[BadReporter()])
    with pytest.raises(RuntimeError, match="the user's own error"):
        trainer.train(5)


def test_ctrl_c_is_told_to_those_who_watch_and_passed_on(tmp_path):
    class Impatient(SmallTrainer):
        def train_epoch(self, toolbox):
            raise KeyboardInterrupt

    listener = _Listener()
    with pytest.raises(KeyboardInterrupt):
        small_trainer(tmp_path, cls=Impatient, observers=[listener]).train(1)
    assert any(isinstance(event, RunInterrupted) for event in listener.events)


def test_a_preview_that_raises_is_logged_once_and_changes_no_weight(tmp_path):
    class NoPreview(SmallTrainer):
        def save_preview(self, image, label, output, *, quality=0.75):
            raise RuntimeError("cannot draw")

    weights = []
    for cls in (SmallTrainer, NoPreview):
        trainer = small_trainer(tmp_path, cls=cls)
        trainer.train(3, seed=1)
        weights.append(torch.load(trainer.experiment_folder() / "checkpoint_latest.pth", weights_only=True))
    assert log_of(trainer).count("cannot draw") == 1
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_preview_is_of_the_worst_case_with_its_quality(tmp_path):
    seen = []

    class Looking(ScriptedTrainer):
        def validate_case(self, image, label, toolbox):
            score = -float(image.mean())
            return score, {}, image * 0

        def save_preview(self, image, label, output, *, quality=0.75):
            seen.append((float(image.mean()), quality, threading.current_thread() is threading.main_thread()))

    trainer = small_trainer(tmp_path, cls=Looking)
    trainer.train(1, preview_quality=0.5)
    assert seen == [(max(float(image.mean()) for image, _ in Squares()), 0.5, False)]


class _Dashboard(Frontend):
    calls = []  # noqa: RUF012

    def on_experiment_created(self, *arguments):
        type(self).calls.append(("created", *arguments))

    def on_experiment_updated(self, *arguments):
        type(self).calls.append(("updated", *arguments))

    def on_experiment_completed(self, *arguments):
        type(self).calls.append(("completed", *arguments))

    def on_experiment_interrupted(self, *arguments):
        type(self).calls.append(("interrupted", *arguments))


@pytest.fixture
def dashboard():
    _Dashboard.calls.clear()
    return _Dashboard


def test_a_frontend_hears_of_the_start_of_each_epoch_and_of_the_end(tmp_path, dashboard):
    trainer = small_trainer(tmp_path)
    trainer.set_frontend(dashboard)
    trainer.train(3, note="a note")
    experiment_id = trainer.experiment_folder().name
    kinds = [call[0] for call in dashboard.calls]
    assert kinds == ["created", "updated", "updated", "updated", "completed"]
    _, *created = dashboard.calls[0]
    assert created[:4] == [experiment_id, "SmallTrainer", "Sequential", "a note"]
    assert created[4] == 4 * 9 + 4 + 4 * 9 + 1
    assert created[6:] == [3, 5]
    assert [call[2] for call in dashboard.calls[1:4]] == [1, 2, 3]
    assert dashboard.calls[3][3]["combined loss"] == trainer.metrics()["combined loss"]


def test_a_frontend_hears_of_an_exception(tmp_path, dashboard):
    trainer = small_trainer(tmp_path, cls=_Failing)
    trainer.set_frontend(dashboard)
    with pytest.raises(RuntimeError):
        trainer.train(3)
    kind, _, error = dashboard.calls[-1]
    assert kind == "interrupted"
    assert str(error) == "the user's own error"


def test_a_frontend_that_raises_changes_nothing_about_the_run(tmp_path):
    class Down(Frontend):
        def on_experiment_updated(self, *arguments):
            raise ConnectionError("no route to host")

    trainer, plain = small_trainer(tmp_path / "1"), small_trainer(tmp_path / "2")
    trainer.set_frontend(Down)
    for each in (trainer, plain):
        each.train(3, seed=5)
    assert trainer.metrics()["val score"] == plain.metrics()["val score"]
    assert log_of(trainer).count("no route to host") == 1


def test_what_a_slow_frontend_says_of_a_run_goes_into_the_log_of_that_run(tmp_path):
    may_go_on = threading.Event()

    class Slow(Frontend):
        def on_experiment_completed(self, experiment_id):
            may_go_on.wait(30)
            self.log(f"told the end of {experiment_id}")

    trainer, folders = small_trainer(tmp_path), []
    trainer.set_frontend(Slow)
    for _ in range(2):
        trainer.train(1, save_preview=False)
        folders.append(trainer.experiment_folder())
    may_go_on.set()
    assert trainer._dashboards.latest[0].wait(stuck_after_s=100, at_most_s=100)
    for folder in folders:
        log = (folder / "logs.txt").read_text()
        assert log.count("told the end of") == log.count(f"told the end of {folder.name}") == 1


def test_the_sampler_is_told_the_epoch_before_each(tmp_path):
    class Sampler(torch.utils.data.SequentialSampler):
        told = []  # noqa: RUF012

        def set_epoch(self, epoch):
            self.told.append(epoch)

    data = Squares()
    training = DataLoader(data, batch_size=2, sampler=Sampler(data))
    SmallTrainer(tmp_path, training, None, console=False).train(3)
    assert Sampler.told == [0, 1, 2]


def test_the_forecast_is_never_below_the_best_seen(tmp_path):
    trainer = scripted_trainer(tmp_path, tuple(1 - 0.8**epoch for epoch in range(1, 13)))
    trainer.train(12, early_stop_tolerance=None)
    epoch, score = trainer.predict_maximum_validation_score(30, degree=5)
    assert isinstance(epoch, int)
    assert 12 <= epoch <= 30
    assert score >= max(trainer.metrics()["val score"])


def test_the_forecast_s_lines_are_logged_once_there_are_enough_epochs(tmp_path):
    trainer = scripted_trainer(tmp_path, tuple(1 - 0.8**epoch for epoch in range(1, 40)))
    trainer.train(12, early_stop_tolerance=None, val_score_prediction_degree=5)
    assert re.search(r"Maximum validation score 0\.\d{4} predicted at epoch \d+", log_of(trainer))
    assert re.search(r"Estimated time of completion in \d+\.\d seconds at \d\d-\d\d \d\d:\d\d:\d\d", log_of(trainer))


def test_the_forecast_can_be_switched_off(tmp_path):
    trainer = scripted_trainer(tmp_path, tuple(1 - 0.8**epoch for epoch in range(1, 40)))
    trainer.train(12, early_stop_tolerance=None, val_score_prediction=False)
    assert "predicted at epoch" not in log_of(trainer)
