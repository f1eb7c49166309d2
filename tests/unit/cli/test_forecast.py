from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from candy_monai.cli.main import main
from candy_monai.experiment.settings import TrainSettings
from candy_monai.experiment.state import Progress, RunState, TrainerState, save_state
from candy_monai.forecasting.best_score import Forecast

SCORES = 0.85 * (1 - np.exp(-np.arange(1, 41) / 15)) + 0.01 * np.random.default_rng(0).standard_normal(40)


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """Return an experiment of which 40 of 100 epochs are over, at two seconds each."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "20251101-14-a3f2"
    folder.mkdir()
    rows = "".join(f"{epoch},{score!r},0.01,2.0\n" for epoch, score in enumerate(SCORES.tolist(), start=1))
    (folder / "metrics.csv").write_text("epoch,val score,learning rate,epoch duration\n" + rows)
    (folder / "experiment.json").write_text(json.dumps({"settings": {"num_epochs": 100}}))
    return folder


def forecast(*arguments) -> int:
    return main(["forecast", *map(str, arguments)])


def test_an_experiment_gets_score_epoch_interval_time_and_a_picture_in_its_folder(experiment, capsys):
    assert forecast(experiment) == 0
    shown = capsys.readouterr().out
    for text in (
        "40 of 100 epochs",
        "Maximum 0.",
        "in 80 % of the runs that get better",
        "Stopping now would cost 0.",
        "Time until then: ",
    ):
        assert text in shown
    assert (experiment / "forecast.png").read_bytes().startswith(b"\x89PNG")


def test_where_no_better_score_is_expected_only_the_end_of_the_run_has_a_time(experiment, monkeypatch, capsys):
    best = float(SCORES.max())
    expected = Forecast(epoch=40, score=best, interval=(best, best), reason=None, quantiles=(best,) * 19)
    monkeypatch.setattr("candy_monai.forecasting.best_score.forecast", lambda *_, **__: expected)
    assert forecast(experiment) == 0
    assert "\nThe run ends at epoch 100, in 2 min\n" in capsys.readouterr().out


def _saved(folder, *, is_complete, epoch, total_s, limit_s):
    state = RunState(
        settings=TrainSettings(num_epochs=100, time_limit_s=limit_s),
        progress=Progress(epoch=epoch, total_s=total_s),
        history={"rows": [], "pending": {}},
        early_stopping={"num_stale_epochs": 0},
        is_complete=is_complete,
        kind="raw",
        trainer=TrainerState(optimizer={}),
    )
    save_state(folder, state, confirm=lambda: None)


def test_a_run_that_its_time_limit_has_ended_is_finished_and_nothing_is_foretold(experiment, capsys):
    _saved(experiment, is_complete=True, epoch=40, total_s=80.0, limit_s=81.0)
    assert forecast(experiment) == 0
    shown = capsys.readouterr().out
    assert "finished, 40 epochs run (time limit reached), best 0." in shown
    assert "100 epochs" not in shown
    assert "predicted" not in shown


def test_one_epoch_is_not_called_epochs(experiment, capsys):
    _saved(experiment, is_complete=True, epoch=1, total_s=80.0, limit_s=81.0)
    (experiment / "metrics.csv").write_text("epoch,val score\n1,0.5\n", encoding="utf-8")
    assert forecast(experiment) == 0
    assert "finished, 1 epoch run (time limit reached), best 0.5000 at epoch 1" in capsys.readouterr().out


def test_a_run_with_a_time_limit_has_as_many_epochs_as_that_leaves_room_for(experiment, capsys):
    _saved(experiment, is_complete=False, epoch=40, total_s=80.0, limit_s=101.0)
    assert forecast(experiment, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["epochs_done"], content["epochs_planned"], content["finished"]) == (40, 50, False)


def test_the_range_of_scores_that_a_run_states_bounds_its_forecast(experiment, capsys):
    description = {"settings": {"num_epochs": 100}, "score_range": [None, 0.84]}
    (experiment / "experiment.json").write_text(json.dumps(description))
    assert SCORES.max() < 0.84
    assert forecast(experiment, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["score"] <= content["interval"][1] <= 0.84


def test_json_says_the_same_in_plain_values_and_draws_nothing(experiment, capsys):
    assert forecast(experiment, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["best_so_far"] == SCORES.max()
    assert content["best_so_far"] <= content["interval"][0] <= content["score"] <= content["interval"][1] <= 1
    assert 40 <= content["epoch"] <= 100
    assert content["seconds_left"] == 2.0 * (content["epoch"] - 40)
    assert content["cost_of_stopping_now"] == pytest.approx(content["score"] - content["best_so_far"])
    assert 0 <= content["chance_of_improving"] <= 1
    assert not (experiment / "forecast.png").exists()


def test_a_run_about_which_nothing_can_be_said_says_why_and_is_no_error(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("epoch,val score\n1,0.5\n2,0.6\n")
    picture = tmp_path / "a.png"
    assert forecast(tmp_path / "a.csv", "--epochs", 10, "--picture", picture) == 0
    assert "No forecast: too few points" in capsys.readouterr().out
    assert picture.is_file()


def test_a_reason_is_part_of_the_json_too(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("epoch,val score\n1,\n2,\n")
    assert forecast(tmp_path / "a.csv", "--epochs", 10, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["reason"] == "there is no finite score yet"
    assert content["score"] is content["interval"] is content["best_so_far"] is None


def test_epochs_are_numbered_as_nnunet_numbers_them(tmp_path, capsys):
    log = tmp_path / "training_log_2026_1_1_00_00_00.txt"
    lines = (
        f"2026-01-01 00:00:00.0: Epoch {i}\n2026-01-01 00:00:01.0: Pseudo dice [{s}]\n" for i, s in enumerate(SCORES)
    )
    log.write_text("".join(lines))
    assert forecast(log, "--json", "--epochs", 100) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["best_so_far_epoch"] == int(SCORES.argmax())  # the first epoch is 0


def test_a_file_that_does_not_say_how_long_the_run_is_needs_to_be_told(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("epoch,val score\n1,0.5\n2,0.6\n")
    assert forecast(tmp_path / "a.csv") == 2
    assert "add --epochs N" in capsys.readouterr().err


def test_a_missing_file_exits_with_2(tmp_path, capsys):
    assert forecast(tmp_path / "none.csv") == 2
    assert "no such file" in capsys.readouterr().err


def test_earlier_runs_of_the_same_dataset_are_found_and_named_and_left_out_where_that_is_asked_for(tmp_path, capsys):
    def run(name: str, scores: np.ndarray, planned: int) -> Path:
        folder = tmp_path / "UNetTrainer" / name
        folder.mkdir(parents=True)
        dataset = {"digest": "d1", "labels": {"background": 0, "cord": 1}}
        description = {"format": 2, "trainer": "UNetTrainer", "score_range": [0, 1], "dataset": dataset}
        (folder / "experiment.json").write_text(json.dumps({**description, "settings": {"num_epochs": planned}}))
        rows = "".join(f"{epoch},{score!r}\n" for epoch, score in enumerate(scores.tolist(), start=1))
        (folder / "metrics.csv").write_text("epoch,val score\n" + rows)
        return folder

    late = 0.05 + 0.7 * np.clip((np.arange(40) - 15) / 15, 0, 1)
    noise = 0.005 * np.random.default_rng(0).standard_normal((5, 40))
    earlier = {str(run(f"earlier{number}", late + noise[number], 40)) for number in range(4)}
    own = run("own", (late + noise[4])[:12], 40)
    assert forecast(own, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert set(content["references"]) == earlier
    assert content["score"] == pytest.approx(0.75, abs=0.1)
    assert content["by_references"] > 0.8
    assert forecast(own, "--json", "--no-references") == 0
    alone = json.loads(capsys.readouterr().out)
    assert (alone["references"], alone["by_references"]) == ([], 0)
    assert forecast(own, "--picture", tmp_path / "picture.png") == 0
    assert f"The forecast uses 4 earlier runs on this dataset in {tmp_path}: " in capsys.readouterr().out


def test_a_folder_that_may_only_be_read_is_forecast_with_a_picture_elsewhere(experiment, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("os.access", lambda path, *_: Path(path) != experiment)  # also for root
    assert forecast(experiment) == 2
    assert f"no permission to write to {experiment}; give another file for the picture with --picture" in (
        capsys.readouterr().err
    )
    assert forecast(experiment, "--picture", tmp_path / "elsewhere.png") == 0
