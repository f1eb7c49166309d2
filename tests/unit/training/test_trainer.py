import csv
import errno
import json
import math
import os
import random
import re
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import candy_monai.experiment.experiment
from candy_monai.errors import BadInputError, ExperimentError, NonFiniteLossError, RunFailedError, SettingsError
from candy_monai.experiment.events import EpochFinished, RunFinished, RunInterrupted, StepFinished
from candy_monai.experiment.history import load_metrics
from candy_monai.experiment.state import load_state
from candy_monai.frontends.base import Frontend
from candy_monai.nn.padding import Pad2d
from candy_monai.observers.base import Observer
from candy_monai.training.trainer import Trainer
from tests.contracts.trainer_contract import TrainerContract
from tests.toys import SmallTrainer, Squares, small_trainer


class TestSmallTrainer(TrainerContract):
    def make_trainer(self, folder):
        return small_trainer(folder)


class TestSmallTrainerOnThreeClassesOfVolumes(TrainerContract):
    def make_trainer(self, folder):
        trainer = small_trainer(folder, Squares(2, size=(14, 16, 12), channels=2, num_classes=3))
        trainer.num_classes = 3
        return trainer


class TestSmallTrainerWithPadding(TrainerContract):
    def make_trainer(self, folder):
        class Padded(SmallTrainer):
            def build_padding_module(self):
                return Pad2d(8)

        return small_trainer(folder, Squares(size=(13, 18)), cls=Padded)


class _Scripted(SmallTrainer):
    """Returns the scores it is told to, and learns nothing."""

    scores = (0.0,)

    def train_epoch(self, toolbox):
        self.record("combined loss", 1.0)

    def validate_case(self, image, label, toolbox):
        score = self.scores[min(self._current().progress.epoch, len(self.scores) - 1)]
        return score, {"dice": 0.5}, torch.zeros_like(image)


def _scripted(folder, scores, **arguments):
    trainer = small_trainer(folder, cls=_Scripted, **arguments)
    trainer.scores = scores
    return trainer


class _Listener(Observer):
    def __init__(self):
        self.events = []

    def receive(self, event):
        self.events.append(event)


def _log(trainer):
    return (trainer.experiment_folder() / "logs.txt").read_text(encoding="utf-8")


def test_the_experiment_s_id_is_its_hour_and_four_characters(tmp_path):
    trainer = small_trainer(tmp_path)
    trainer.train(1)
    assert re.fullmatch(r"\d{8}-\d{2}-[0-9a-f]{4}", trainer.experiment_id())
    assert trainer.experiment_folder() == tmp_path / "SmallTrainer" / trainer.experiment_id()


def test_asking_for_the_experiment_before_there_is_one_is_a_clear_error(tmp_path):
    with pytest.raises(ExperimentError, match="call train"):
        small_trainer(tmp_path).experiment_folder()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"num_checkpoints": 5}, {2, 4, 6, 8, 10}),
        ({"num_checkpoints": 3}, {3, 7, 10}),
        ({"num_checkpoints": 0}, set()),
        ({"num_checkpoints": 99}, set(range(1, 11))),
    ],
)
def test_exactly_the_evenly_spaced_checkpoints_asked_for_are_left(tmp_path, settings, expected):
    trainer = _scripted(tmp_path, (0.0,))
    trainer.train(10, early_stop_tolerance=None, **settings)
    names = [path.name for path in trainer.experiment_folder().glob("checkpoint_*.pth")]
    assert {int(found[1]) for name in names if (found := re.fullmatch(r"checkpoint_(\d+)\.pth", name))} == expected


@pytest.mark.parametrize("tolerance", [1, 3, 5])
def test_it_stops_after_exactly_the_tolerated_epochs_without_a_better_score(tmp_path, tolerance):
    trainer = _scripted(tmp_path, (0.1, 0.2, 0.3, 0.3))
    trainer.train(50, early_stop_tolerance=tolerance)
    assert len(trainer.metrics()["val score"]) == 3 + tolerance
    message = f"Early stopping triggered because the validation score has not improved for {tolerance} epochs"
    assert message in _log(trainer)


def test_without_a_tolerance_it_runs_to_the_end(tmp_path):
    trainer = _scripted(tmp_path, (0.3, 0.1))
    trainer.train(12, early_stop_tolerance=None)
    assert len(trainer.metrics()["val score"]) == 12


def test_a_nan_score_is_recorded_as_empty_and_never_becomes_the_best(tmp_path):
    trainer = _scripted(tmp_path, (math.nan, 0.2, math.nan))
    trainer.train(3)
    state = load_state(trainer.experiment_folder())
    assert (state["progress"]["best_score"], state["progress"]["best_epoch"]) == (0.2, 2)
    rows = list(csv.DictReader((trainer.experiment_folder() / "metrics.csv").open()))
    assert [row["val score"] for row in rows] == ["", "0.2", ""]


def test_every_case_is_validated_exactly_once_an_epoch_and_not_padded(tmp_path):
    seen = []

    class Counting(SmallTrainer):
        def build_padding_module(self):
            return Pad2d(8)

        def validate_case(self, image, label, toolbox):
            seen.append((tuple(image.shape), tuple(label.shape), (toolbox.ema or toolbox.model)(image[None]).shape))
            return super().validate_case(image, label, toolbox)

    data = Squares(3, size=(13, 18))
    trainer = Counting(tmp_path, DataLoader(data, batch_size=3), DataLoader(data, batch_size=2), console=False)
    trainer.train(2)
    assert seen == [((1, 13, 18), (1, 13, 18), (1, 1, 13, 18))] * 6


def test_backward_gets_images_and_labels_padded_in_step_and_the_new_label_voxels_are_filled(tmp_path):
    seen = []

    class Looking(SmallTrainer):
        label_fill = 7

        def build_padding_module(self):
            return Pad2d(8)

        def backward(self, images, labels, toolbox):
            seen.append((images.shape, labels.shape, int(labels.max()), labels.dtype))
            return super().backward(images, labels.clamp(max=1), toolbox)

    small_trainer(tmp_path, Squares(2, size=(13, 16)), cls=Looking).train(1)
    assert seen == [((2, 1, 16, 16), (2, 1, 16, 16), 7, torch.int64)]


def test_the_score_is_the_same_with_and_without_padding(tmp_path):
    class Padded(SmallTrainer):
        def build_padding_module(self):
            return Pad2d(8)

    scores = []
    for cls in (SmallTrainer, Padded):
        trainer = small_trainer(tmp_path, Squares(size=(13, 18)), cls=cls)
        trainer.train_epoch = lambda toolbox: None
        trainer.train(1, seed=3)
        scores.append(trainer.metrics()["val score"][0])
    # padding with zeros and a 3 x 3 network without bias-free layers differ at the border alone
    assert scores[0] == pytest.approx(scores[1], abs=0.01)


def test_only_the_asked_number_of_cases_is_validated(tmp_path):
    seen = []

    class Counting(SmallTrainer):
        def validate_case(self, image, label, toolbox):
            seen.append(1)
            return super().validate_case(image, label, toolbox)

    small_trainer(tmp_path, cls=Counting).train(2, num_validation_cases=3)
    assert len(seen) == 6


def test_validating_each_few_epochs_still_validates_the_last(tmp_path):
    trainer = _scripted(tmp_path, (0.1, 0.2, 0.3, 0.4, 0.5))
    trainer.train(5, validate_every=3)
    assert [not math.isnan(score) for score in trainer.metrics()["val score"]] == [False, False, True, False, True]


def test_recorded_numbers_are_averaged_over_the_epoch(tmp_path):
    class Recording(_Scripted):
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
    class Talking(_Scripted):
        def train_epoch(self, toolbox):
            self.log(message)
            self.log("for the file only", on_screen=False)

    trainer = small_trainer(tmp_path, cls=Talking, console=True)
    trainer.train(1)
    shown = capsys.readouterr().out
    assert message in shown
    assert "for the file only" not in shown
    assert message in _log(trainer)
    assert "for the file only" in _log(trainer)


def test_the_metrics_table_appears_after_each_epoch(tmp_path, capsys):
    _scripted(tmp_path, (0.1, 0.2), console=True).train(2)
    shown = capsys.readouterr().out
    assert shown.count("Mean Value") == 2
    assert "Span" in shown
    assert "Diff" in shown


def test_a_drawn_seed_is_recorded_and_repeats_the_run(tmp_path):
    first, second = small_trainer(tmp_path / "1"), small_trainer(tmp_path / "2")
    first.train(2)
    seed = json.loads((first.experiment_folder() / "experiment.json").read_text())["settings"]["seed"]
    second.train(2, seed=seed)
    assert first.metrics()["combined loss"] == second.metrics()["combined loss"]


def test_a_seed_sets_every_generator_and_not_the_kernels(tmp_path):
    drawn = []

    class Drawing(_Scripted):
        def build_criterion(self):
            drawn.append((random.random(), np.random.rand(), torch.rand(1).item(), os.environ["PYTHONHASHSEED"]))
            return super().build_criterion()

    for index in range(2):
        small_trainer(tmp_path / str(index), cls=Drawing).train(1, seed=42)
    assert drawn[0] == drawn[1]
    assert drawn[0][3] == "42"
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_plain_loss_of_monai_s_is_accepted(tmp_path):
    from monai.losses import DiceLoss

    class Plain(SmallTrainer):
        def build_criterion(self):
            return DiceLoss(sigmoid=True)

    trainer = small_trainer(tmp_path, cls=Plain)
    trainer.train(1)
    assert math.isfinite(trainer.metrics()["val score"][0])


def test_dictionary_batches_are_accepted(tmp_path):
    class Dictionaries(Squares):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return {"image": image, "label": label, "case_id": f"case_{index}"}

    trainer = small_trainer(tmp_path, Dictionaries())
    trainer.train(1)
    assert math.isfinite(trainer.metrics()["val score"][0])


def test_a_stream_without_a_length_is_accepted_by_a_trainer_whose_schedule_needs_none(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from Squares()

    class Constant(SmallTrainer):
        def build_scheduler(self, optimizer, num_epochs):
            return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)

    trainer = Constant(tmp_path, DataLoader(Stream(), batch_size=2), DataLoader(Stream(), batch_size=1), console=False)
    trainer.train(2)
    assert len(trainer.metrics()["combined loss"]) == 2


def test_an_empty_loader_is_refused_before_anything_is_written(tmp_path):
    data = Squares(2)
    with pytest.raises(BadInputError, match=r"2 samples.*batch_size is 5.*drop_last is True"):
        SmallTrainer(tmp_path, DataLoader(data, batch_size=5, drop_last=True), DataLoader(data)).train(1)
    with pytest.raises(BadInputError, match="validation loader"):
        SmallTrainer(tmp_path, DataLoader(data), DataLoader(data, batch_size=5, drop_last=True)).train(1)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_setting_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(SettingsError, match="early_stop_tolerance"):
        small_trainer(tmp_path).train(1, early_stop_tolerance=0)
    assert list(tmp_path.iterdir()) == []


class _Exploding(SmallTrainer):
    at = 2

    def backward(self, images, labels, toolbox):
        loss, metrics = super().backward(images, labels, toolbox)
        self.at -= 1
        return (loss * math.nan if self.at == 0 else loss), metrics


def test_a_loss_that_is_not_finite_stops_the_run_with_epoch_and_step(tmp_path):
    trainer = small_trainer(tmp_path, cls=_Exploding)
    trainer.at = 3
    with pytest.raises(NonFiniteLossError, match="epoch 2 at step 1"):
        trainer.train(5)
    assert load_state(trainer.experiment_folder())["progress"]["epoch"] == 1


def test_a_step_whose_loss_is_not_finite_can_be_left_out(tmp_path):
    trainer = small_trainer(tmp_path, cls=_Exploding)
    trainer.train(2, non_finite="skip")
    assert load_state(trainer.experiment_folder())["progress"]["step"] == 3
    assert "1 steps left out: first, the loss became nan in epoch 1 at step 2" in _log(trainer)
    assert all(map(math.isfinite, trainer.metrics()["combined loss"]))


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
    assert "Interrupted in epoch 2: RuntimeError: the user's own error" in _log(trainer)
    assert any(isinstance(event, RunInterrupted) for event in listener.events)
    assert not any(isinstance(event, RunFinished) for event in listener.events)


class _Slow(Observer):
    """Lets ``state.pt`` be written only once a step of the second epoch is made, and notes what is told when."""

    def __init__(self, monkeypatch, *, error=None):
        self.told, self._may_write, self._error = [], threading.Event(), error
        self._save = candy_monai.experiment.experiment.save_state
        monkeypatch.setattr("candy_monai.experiment.experiment.save_state", self._slowly)

    def _slowly(self, folder, state, **options):
        if state["progress"]["epoch"]:
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
    assert [line.split(": ")[0][-7:] for line in _log(trainer).splitlines() if "combined loss" in line] == [
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
    assert load_state(trainer.experiment_folder())["progress"]["epoch"] == 0
    assert "Interrupted in epoch 2: RunFailedError" in _log(trainer)


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
    assert _log(trainer).count("cannot draw") == 1
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_preview_is_of_the_worst_case_with_its_quality(tmp_path):
    seen = []

    class Looking(_Scripted):
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
    experiment_id = trainer.experiment_id()
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
    assert _log(trainer).count("no route to host") == 1


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
    assert trainer._deliveries[0].wait(stuck_after_s=100, at_most_s=100)
    for folder in folders:
        log = (folder / "logs.txt").read_text()
        assert log.count("told the end of") == log.count(f"told the end of {folder.name}") == 1


def test_settings_of_the_file_are_used_and_keywords_win(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yml").write_text("note: from the file\nnum_checkpoints: 1\nseed: 42\nsave_preview: false\n")
    trainer = _scripted(tmp_path, (0.1,))
    trainer.train_with_settings(2, note="from the call")
    settings = json.loads((trainer.experiment_folder() / "experiment.json").read_text())["settings"]
    assert (settings["note"], settings["num_checkpoints"], settings["seed"]) == ("from the call", 1, 42)
    assert settings["num_epochs"] == 2


def test_an_unknown_setting_is_an_error_with_a_suggestion(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yml").write_text("num_checkpoint: 3\n")
    with pytest.raises(SettingsError, match="'num_checkpoints'"):
        small_trainer(tmp_path).train_with_settings(1)


def test_the_sampler_is_told_the_epoch_before_each(tmp_path):
    class Sampler(torch.utils.data.SequentialSampler):
        told = []  # noqa: RUF012

        def set_epoch(self, epoch):
            self.told.append(epoch)

    data = Squares()
    training = DataLoader(data, batch_size=2, sampler=Sampler(data))
    SmallTrainer(tmp_path, training, None, console=False).train(3)
    assert Sampler.told == [0, 1, 2]


def test_the_gradient_s_norm_is_clipped_before_the_step(tmp_path):
    norms = []

    class Clipped(SmallTrainer):
        max_grad_norm = 1e-3

        def build_optimizer(self, params):
            params = list(params)
            optimizer = torch.optim.SGD(params, lr=0.1)
            optimizer.register_step_pre_hook(
                lambda *_: norms.append(float(nn.utils.get_total_norm([p.grad for p in params])))
            )
            return optimizer

    small_trainer(tmp_path, cls=Clipped).train(1)
    assert norms
    assert max(norms) <= 1e-3 * 1.001


def test_the_schedule_steps_once_a_batch_and_ends_with_the_run(tmp_path):
    trainer = small_trainer(tmp_path)
    trainer.train(4)
    assert trainer.metrics()["learning rate"] == pytest.approx([0.02, 0.015, 0.01, 0.005])


def test_a_slow_machine_s_run_ends_in_time_validated_and_with_its_learning_rate_come_down(tmp_path):
    class Slow(SmallTrainer):
        def train_epoch(self, toolbox):
            super().train_epoch(toolbox)
            self._current().progress.epoch_s += 10.0

    trainer = small_trainer(tmp_path, cls=Slow)
    trainer.train(100, seed=0, time_limit_s=49.0, validate_every=3, early_stop_tolerance=None)
    metrics = load_metrics(trainer.experiment_folder() / "metrics.csv")
    at_start = trainer.learning_rate
    # Until the first epoch ended, nothing told that 4 epochs of 10 s fit: from there straight down to the end of these.
    assert metrics["learning rate"] == pytest.approx([at_start * share for share in (1, 0.99, 0.66, 0.33)])
    (group,) = load_state(trainer.experiment_folder())["optimizer"]["param_groups"]
    assert group["lr"] <= 1e-6
    assert [math.isfinite(score) for score in metrics["val score"]] == [False, False, True, True]


def test_the_state_for_recovery_loads_as_plain_values_and_holds_the_average(tmp_path):
    trainer = small_trainer(tmp_path)
    trainer.train(2)
    state = load_state(trainer.experiment_folder())
    assert {"optimizer", "scheduler", "ema", "processes", "early_stopping", "history", "progress"} <= state.keys()
    assert {"generators", "epoch_generators"} <= state["processes"][0].keys()
    assert state["progress"]["step"] == 4


def test_the_forecast_is_never_below_the_best_seen_and_the_time_left_never_negative(tmp_path):
    trainer = _scripted(tmp_path, tuple(1 - 0.8**epoch for epoch in range(1, 13)))
    trainer.train(12, early_stop_tolerance=None)
    epoch, score = trainer.predict_maximum_validation_score(30, degree=5)
    assert isinstance(epoch, int)
    assert 12 <= epoch <= 30
    assert score >= max(trainer.metrics()["val score"])
    assert trainer.etc(12, 30) >= 0
    assert trainer.etc(20, 30, target_epoch=10) == 0


def test_the_forecast_s_lines_are_logged_once_there_are_enough_epochs(tmp_path):
    trainer = _scripted(tmp_path, tuple(1 - 0.8**epoch for epoch in range(1, 40)))
    trainer.train(12, early_stop_tolerance=None, val_score_prediction_degree=5)
    assert re.search(r"Maximum validation score 0\.\d{4} predicted at epoch \d+", _log(trainer))
    assert re.search(r"Estimated time of completion in \d+\.\d seconds at \d\d-\d\d \d\d:\d\d:\d\d", _log(trainer))


def test_the_forecast_can_be_switched_off(tmp_path):
    trainer = _scripted(tmp_path, tuple(1 - 0.8**epoch for epoch in range(1, 40)))
    trainer.train(12, early_stop_tolerance=None, val_score_prediction=False)
    assert "predicted at epoch" not in _log(trainer)


def test_one_trainer_can_run_twice_and_makes_two_experiments(tmp_path):
    trainer = small_trainer(tmp_path)
    trainer.train(1)
    first = trainer.experiment_id()
    trainer.train(1)
    assert trainer.experiment_id() != first
    assert len(list((tmp_path / "SmallTrainer").iterdir())) == 2


class _Typed(Squares):
    """Squares with images and labels of some types."""

    def __init__(self, images, labels=torch.int64):
        super().__init__()
        self.types = images, labels

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return (20 * image.abs()).round().to(self.types[0]), label.to(self.types[1])


IMAGE_TYPES = [torch.uint8, torch.int16, torch.uint16, torch.int64, torch.float64, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", IMAGE_TYPES)
def test_images_of_any_type_train_like_those_of_float32(tmp_path, dtype):
    def metrics(dtype):
        trainer = small_trainer(tmp_path, _Typed(dtype))
        trainer.train(1, seed=0, save_preview=False)
        return {name: values for name, values in trainer.metrics().items() if name != "epoch duration"}

    assert metrics(dtype) == metrics(torch.float32)


@pytest.mark.parametrize("network_type", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("image_type", [torch.float32, torch.float64])
def test_images_and_floating_labels_come_in_the_type_of_the_network(tmp_path, network_type, image_type):
    class Looking(SmallTrainer):
        seen = ()

        def build_network(self, example_shape):
            return super().build_network(example_shape).to(network_type)

        def backward(self, images, labels, toolbox):
            self.seen = images.dtype, labels.dtype
            return super().backward(images, labels, toolbox)

    trainer = small_trainer(tmp_path, _Typed(image_type, torch.float64), cls=Looking)
    trainer.train(1, save_preview=False)
    assert trainer.seen == (network_type, torch.promote_types(network_type, torch.float32))


def test_a_trainer_that_is_not_of_segmentation_may_learn_any_numbers(tmp_path):
    class Regression(Trainer):
        def build_network(self, example_shape):
            return nn.Conv2d(example_shape[0], 1, 3, padding=1)

        def build_optimizer(self, params):
            return torch.optim.SGD(params, lr=0.01)

        def build_scheduler(self, optimizer, num_epochs):
            return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)

        def build_criterion(self):
            return nn.MSELoss()

        def backward(self, images, labels, toolbox):
            loss = toolbox.criterion(toolbox.model(images), labels)
            loss.backward()
            return loss.detach(), {}

        def validate_case(self, image, label, toolbox):
            output = toolbox.model(image[None])[0]
            return -toolbox.criterion(output, label).item(), {}, output

    class Fractions(Squares):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image, label.double() * -0.3

    trainer = small_trainer(tmp_path, Fractions(), cls=Regression)
    trainer.train(1, save_preview=False)
    assert math.isfinite(trainer.metrics()["val score"][0])


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"score": "dice"}, (0.0, 1.0)),
        ({"score": "negative loss"}, (None, 0.0)),
        ({"validate_case": lambda self, image, label, toolbox: (66.0, {}, label)}, None),
        ({"score": "dice", "score_case": lambda self, logits, label, toolbox: (66.0, {})}, None),
        ({"score_range": (0, 100)}, (0, 100)),
    ],
)
def test_a_trainer_knows_the_range_of_its_own_scores_and_takes_another_from_the_user(tmp_path, attributes, expected):
    assert small_trainer(tmp_path, cls=type("Own", (SmallTrainer,), attributes)).score_range == expected


@pytest.mark.parametrize("wrong", [(1, 0), (0, "much"), 1.0, (0, 1, 2)])
def test_what_is_no_range_of_scores_is_refused_before_anything_is_written(tmp_path, wrong):
    trainer = small_trainer(tmp_path)
    trainer.score_range = wrong
    with pytest.raises(SettingsError, match="score_range must be"):
        trainer.train(1)
    assert not list(tmp_path.rglob("experiment.json"))
