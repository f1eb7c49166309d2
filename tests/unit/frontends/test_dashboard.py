import json
import math
import time

import pytest

from candy_monai.experiment.description import describe_trainer, write_description
from candy_monai.experiment.events import RunFinished, RunInterrupted, RunScored
from candy_monai.forecasting.best_score import Forecast
from candy_monai.frontends import dashboard
from candy_monai.frontends.dashboard import (
    Dashboard,
    MetricNames,
    described,
    flattened,
    metric_name,
    project_of,
    remember,
    remembered,
)
from tests.events import epoch_finished, run_started

FINISHED = RunFinished(epoch=3, best_score=0.5, best_epoch=2)


class Shown(Dashboard):
    """Remembers what it shows, and fails as often as it is told to."""

    def __init__(self, *, known=0, failures=0):
        super().__init__({})
        self.known, self.failures, self.said = known, failures, []
        self.opened, self.epochs, self.previews, self.end, self.scores, self.closed = [], {}, [], [], {}, 0
        self.log_to(self.said.append)

    def _open(self, run, settings):
        self.opened.append(settings)
        return self.known

    def _show_epochs(self, epochs):
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no route to host")
        assert not set(epochs) & set(self.epochs)
        self.epochs |= epochs

    def _show_previews(self, pictures, epoch):
        self.previews.append((epoch, {name: path.name for name, path in pictures.items()}))

    def _show_scores(self, scores, event):
        self.scores |= scores

    def _show_end(self, status, facts):
        self.end.append((status, facts))

    def _close(self):
        self.closed += 1


@pytest.fixture
def folder(tmp_path):
    """Return the folder of a run that has begun."""
    folder = tmp_path / "MyTrainer" / "20251101-14-a3f2"
    folder.mkdir(parents=True)
    write_description(folder, describe_trainer("MyTrainer", {"settings": {"seed": 3, "num_epochs": 5, "amp": None}}))
    return folder


def _losses(count):
    return {"combined loss": [1.0 / (epoch + 1) for epoch in range(count)]}


def _tell(shown, *events):
    for event in events:
        shown.on_event(event)
    return shown


def test_each_epoch_is_shown_once_and_those_that_were_left_out_with_the_next(folder):
    shown = _tell(Shown(), run_started(folder=folder), epoch_finished(1, metrics=_losses(1)))
    _tell(shown, epoch_finished(4, metrics=_losses(4)), FINISHED)
    assert {epoch: row["train/combined_loss"] for epoch, row in shown.epochs.items()} == {
        1: 1.0,
        2: 1 / 2,
        3: 1 / 3,
        4: 1 / 4,
    }


def test_a_value_that_was_not_measured_is_not_shown(folder):
    metrics = {"val score": [0.25, math.nan, 0.125], "val dice": [math.nan] * 3, "loss": [1.0, math.inf, 1.0]}
    shown = _tell(Shown(), run_started(folder=folder), epoch_finished(3, metrics=metrics))
    assert shown.epochs == {
        1: {"val/score": 0.25, "val/best_score": 0.25, "train/loss": 1.0},
        2: {"val/best_score": 0.25, "train/loss": math.inf},
        3: {"val/score": 0.125, "val/best_score": 0.25, "train/loss": 1.0},
    }


def test_a_run_that_goes_on_shows_the_epochs_that_the_dashboard_lacks(folder):
    shown = _tell(Shown(known=2), run_started(folder=folder, epoch=3), epoch_finished(4, metrics=_losses(4)))
    assert sorted(shown.epochs) == [3, 4]


def test_a_dashboard_that_is_ahead_of_what_was_saved_is_told_the_epochs_that_are_trained_again(folder):
    shown = _tell(Shown(known=9), run_started(folder=folder, epoch=1), epoch_finished(2, metrics=_losses(2)))
    assert sorted(shown.epochs) == [2]


def test_the_forecast_and_the_step_are_shown_with_the_newest_epoch(folder):
    prediction = Forecast(epoch=9, score=0.75, interval=(0.7, 0.8), reason=None)
    event = epoch_finished(2, metrics=_losses(2), forecast=prediction, step=40)
    shown = _tell(Shown(), run_started(folder=folder), event)
    expected = {
        "run/step": 40,
        "forecast/best_score": 0.75,
        "forecast/epoch": 9,
        "forecast/low": 0.7,
        "forecast/high": 0.8,
    }
    assert shown.epochs[2].items() >= expected.items()
    assert set(shown.epochs[1]) == {"train/combined_loss"}


def test_a_forecast_that_abstains_is_not_shown(folder):
    abstaining = Forecast(epoch=0, score=math.nan, interval=None, reason="too few")
    shown = _tell(Shown(), run_started(folder=folder), epoch_finished(1, forecast=abstaining))
    assert shown.epochs == {1: {}}


def test_what_fails_is_said_once_and_made_up_for_after_a_pause(folder, monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    shown = _tell(Shown(failures=2), run_started(folder=folder), epoch_finished(1, metrics=_losses(1)))
    _tell(shown, epoch_finished(2, metrics=_losses(2)))
    assert shown.failures == 1  # it was not tried again at once
    now = 6.0
    _tell(shown, epoch_finished(3, metrics=_losses(3)))
    now = 12.0
    _tell(shown, epoch_finished(4, metrics=_losses(4)))
    assert shown.epochs == {}
    now = 17.0  # the pause is longer after each failure
    _tell(shown, epoch_finished(5, metrics=_losses(5)))
    assert sorted(shown.epochs) == [1, 2, 3, 4, 5]
    assert shown.said == [
        "Shown cannot be updated at present; this is tried again: ConnectionError: no route to host",
        "Shown is up to date again",
    ]


def test_the_end_shows_what_is_left_whatever_the_pause(folder):
    shown = _tell(Shown(failures=1), run_started(folder=folder), epoch_finished(2, metrics=_losses(2)), FINISHED)
    assert sorted(shown.epochs) == [1, 2]


def test_the_log_counts_the_epochs_that_never_arrived(folder):
    shown = _tell(Shown(failures=99), run_started(folder=folder), epoch_finished(3, metrics=_losses(3)))
    with pytest.raises(ConnectionError):
        shown.on_experiment_closed("id")
    assert shown.said[-1] == "Shown: 3 of 3 epochs are missing in the dashboard"
    assert shown.closed == 1


def test_nothing_is_missing_where_all_arrived(folder):
    shown = _tell(Shown(), run_started(folder=folder), epoch_finished(1, metrics=_losses(1)), FINISHED)
    shown.on_experiment_closed("id")
    assert (shown.said, shown.closed) == ([], 1)


def test_the_next_run_begins_anew(folder):
    shown = _tell(Shown(), run_started(folder=folder), epoch_finished(1, metrics={"loss": [1.0]}), FINISHED)
    shown.on_experiment_closed("id")
    shown.epochs.clear()
    _tell(shown, run_started(folder=folder), epoch_finished(1, metrics={"loss": [2.0]}))
    assert shown.epochs == {1: {"train/loss": 2.0}}


def test_closing_without_a_run_does_nothing():
    shown = Shown()
    shown.on_experiment_closed("id")
    assert shown.closed == 0


@pytest.mark.parametrize(
    ("event", "status", "words"),
    [
        (FINISHED, "finished", "finished after epoch 3, best 0.5000 at epoch 2"),
        (RunFinished(epoch=3, best_score=-math.inf, best_epoch=0), "finished", "finished after epoch 3"),
        (RunInterrupted(KeyboardInterrupt()), "interrupted", "KeyboardInterrupt"),
        (RunInterrupted(ValueError("a\nb")), "failed", "ValueError: a b"),
    ],
)
def test_the_end_says_how_and_names_the_best_weights_if_there_are_any(folder, event, status, words):
    shown = _tell(Shown(), run_started(folder=folder), event)
    assert shown.end == [(status, {"status": words})]
    (folder / "checkpoint_best.pth").touch()
    shown = _tell(Shown(), run_started(folder=folder), event)
    assert shown.end[0][1]["checkpoint"] == str(folder / "checkpoint_best.pth")


def test_final_scores_have_names_of_their_own(folder):
    scores = RunScored(scores={"dice": 0.5, "dice/Left lung": 0.25, "dice/x": math.nan}, num_cases=2, file=folder)
    shown = _tell(Shown(), run_started(folder=folder), FINISHED, scores)
    assert shown.scores == {"final/dice": 0.5, "final/dice/Left_lung": 0.25}


def test_previews_are_shown_when_they_change_and_in_the_end(folder):
    shown = _tell(Shown(), run_started(folder=folder, num_epochs=4))
    for name in ("actual (preview).png", "combined loss.png", ".actual (preview)-x.png"):
        (folder / name).write_bytes(b"1")
    _tell(shown, epoch_finished(1), epoch_finished(2))
    assert shown.previews == [(1, {"previews/actual": "actual (preview).png"})]
    (folder / "actual (preview).png").write_bytes(b"22")
    _tell(shown, FINISHED)
    assert len(shown.previews) == 1
    shown.on_experiment_closed("id")  # only now are the last ones drawn
    assert shown.previews[1:] == [(2, {"previews/actual": "actual (preview).png"})]


def test_a_long_run_shows_about_fifty_previews_besides_the_last(folder):
    shown = _tell(Shown(), run_started(folder=folder, num_epochs=1000))
    picture = folder / "actual (preview).png"
    for epoch in range(1, 1001):
        picture.write_bytes(b"." * epoch)
        _tell(shown, epoch_finished(epoch, num_epochs=1000))
    assert 45 <= len(shown.previews) <= dashboard.MOST_PREVIEWS


def test_columns_are_grouped_by_what_they_are_of():
    names = MetricNames()
    columns = ["val dice", "val score", "combined loss", "learning rate", "epoch duration", "val dice 1"]
    expected = ["val/dice", "val/score", "train/combined_loss", "run/learning_rate", "run/epoch_duration", "val/dice_1"]
    assert [names.of(column) for column in columns] == expected


def test_columns_that_other_hosts_name_are_grouped_too():
    names = MetricNames()
    columns = ["val_mean_dice", "train_loss", "val_", "lr-Adam"]
    assert [names.of(column) for column in columns] == ["val/mean_dice", "train/loss", "train/val_", "train/lr-Adam"]


def test_no_two_columns_share_a_name_nor_take_one_of_the_run_s_own():
    names = MetricNames()
    columns = ["val a b", "val a_b", "val a/b", "val best score", "val best_score", "val/a b", "val a b"]
    found = [names.of(column) for column in columns]
    assert found[0] == found[-1]
    assert len({*found, "val/best_score"}) == len(columns)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("dice 1", "dice_1"),
        ("<b>Leber & Milz</b>", "_b_Leber_Milz_/b_"),
        ("肝臓", "肝臓"),
        ("../../etc", "etc"),
        ("//", "_"),
        ("", "_"),
        ("a" * 500, "a" * 200),
    ],
)
def test_a_name_holds_what_every_dashboard_takes(text, name):
    assert metric_name(text) == name


def test_nested_settings_become_names_with_slashes():
    facts = {"a": {"b": 1, "c": None, "d": {"e": True}}, "f": [1, 2], "g": [], "h": "x" * 600, "i": [{"k": "ä"}]}
    assert flattened(facts) == {
        "a/b": 1,
        "a/d/e": True,
        "f": "[1, 2]",
        "h": "x" * 497 + "...",
        "i": '[{"k": "ä"}]',
    }


def test_what_a_run_is_made_of_names_no_case_and_no_path(folder):
    dataset = {
        "name": "Liver",
        "folder": "/secret/place",
        "store": "/secret/store",
        "digest": "abc",
        "training": ["patient_1", "patient_2"],
        "validation": ["patient_3"],
    }
    entries = {"dataset": dataset, "plan": {"batch_size": 4}, "settings": {"seed": 3, "num_epochs": 5}}
    write_description(folder, describe_trainer("MyTrainer", entries))
    facts = described(run_started(folder=folder, num_epochs=9, num_macs=math.nan))
    assert facts["settings"] == {"seed": 3, "num_epochs": 9}
    assert (facts["dataset"]["num_training"], facts["dataset"]["num_validation"]) == (2, 1)
    assert facts["plan"]["batch_size"] == 4
    assert not any(secret in json.dumps(facts) for secret in ("patient", "/secret"))
    assert project_of(run_started(), facts) == "Liver"
    assert project_of(run_started(), {}) == "MyTrainer"


def test_what_is_remembered_of_a_run_is_found_again(tmp_path):
    file = tmp_path / "x.json"
    assert remembered(file) == {}
    remember(file, {"run_id": "a"})
    assert remembered(file) == {"run_id": "a"}
    for damaged in ("[1]", "{", "\0"):
        file.write_text(damaged)
        assert remembered(file) == {}
